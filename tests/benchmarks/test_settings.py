"""The settings of the sweeps behind the docs' numbers: variants are what they are called; Figure 2 is drawn."""

import importlib
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ddpg_ext.buffers import PrioritizedReplayBuffer

pytest.importorskip("ray.tune")
from ddpg_ext.zoo import sweep, sweep_run
from ddpg_ext.zoo.sweep_options import parse

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SETTINGS = sorted((BENCHMARKS / "settings").glob("*.yml"))


@pytest.fixture
def model_of(tmp_path, monkeypatch):
    """The model of a variant, before training, in a run that is as long as given."""
    monkeypatch.chdir(BENCHMARKS.parent)

    def model_of(settings, variant, **hyperparameters):
        runs = sweep.plan(parse([str(BENCHMARKS / "settings" / f"{settings}.yml"), "--seed", "0"]))
        (run,) = (run for run in runs if run.variant == variant)
        run = run._replace(hyperparameters={**run.hyperparameters, **hyperparameters}, eval_freq=-1)
        return sweep_run.prepare(run, tmp_path)[1]

    return model_of


@pytest.mark.parametrize("file", SETTINGS, ids=lambda file: file.stem)
def test_the_settings_can_be_swept(file, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    runs = sweep.plan(parse([str(file)]))
    seeds = {run.seed for run in runs}
    assert seeds.isdisjoint(range(100)) if file.stem.startswith("pilot_") else seeds >= {0, 1, 2}
    assert all(run.n_timesteps % run.eval_freq == 0 for run in runs)  # the last evaluation is at the end


def test_variants_of_learning(model_of):
    models = {name: model_of("learning", name) for name in ("paper", "no-batch-norm", "no-weight-decay", "slow-noise")}
    described = {name: (m.policy.batch_norm, m.qf_weight_decay, m.action_noise.dt) for name, m in models.items()}
    expected = {"paper": (True, 1e-2, 1.0), "no-batch-norm": (False, 1e-2, 1.0)}
    expected |= {"no-weight-decay": (True, 0, 1.0), "slow-noise": (True, 1e-2, 1e-2)}
    assert described == expected
    matched = model_of("learning_sb3", "sb3-ddpg-matched")
    assert (matched.batch_size, matched.tau, matched.lr_schedule(1.0), matched.action_noise.dt) == (64, 1e-3, 1e-3, 1.0)
    assert model_of("learning", "sb3-ddpg").action_noise is None


def test_variants_of_figure2(model_of):
    names = ("no-targets", "no-batch-norm", "paper")
    models = {name: model_of("batch_norm_pendulum", name) for name in names}
    models["pixels"] = model_of("figure2_pendulum_pixels", "pixels")
    described = {name: (model.tau, model.policy.batch_norm, model.batch_size) for name, model in models.items()}
    expected = {"no-targets": (1.0, True, 64), "no-batch-norm": (1e-3, False, 64), "paper": (1e-3, True, 64)}
    assert described == {**expected, "pixels": (1e-3, False, 16)}
    others = {(m.qf_weight_decay, m.learning_rate, m.qf_learning_rate, m.gamma) for m in models.values()}
    assert others == {(1e-2, 1e-4, 1e-3, 0.99)}
    assert models["pixels"].observation_space.shape == (9, 64, 64)


def test_wrappers_of_pixels(model_of):
    env = model_of("pixels_pendulum", "pixels-tuned").get_env()
    assert env.reset().mean() < 64  # a rod on black
    single = env.unwrapped.envs[0]
    inner = single.env  # `Tenth` is outermost
    state = single.unwrapped.state.copy()
    _, reward, *_ = single.step(np.ones(1, np.float32))
    single.unwrapped.state = state
    assert reward == pytest.approx(0.1 * inner.step(np.ones(1, np.float32))[1])

    pytest.importorskip("Box2D")
    car = model_of("pixels_car_racing", "pixels-tuned").get_env().unwrapped.envs[0]
    assert car.action_space.shape == (2,)
    pedals = car.env  # PixelActionRepeat is outermost
    assert pedals.action(np.array([-0.5, 0.25])).tolist() == [-0.5, 0.25, 0]
    assert pedals.action(np.array([0.5, -0.75])).tolist() == [0.5, 0, 0.75]


@pytest.mark.parametrize(("settings", "steps"), [("figure2_pendulum_pixels", 3), ("batch_norm_cartpole", 9)])
def test_steps_of_the_simulation(model_of, settings, steps):
    if settings == "batch_norm_cartpole":
        pytest.importorskip("dm_control")
    env = model_of(settings, "pixels" if "pixels" in settings else "paper").get_env()
    env.reset()
    env.step(np.zeros((1, 1), np.float32))
    single = env.unwrapped.envs[0]
    if settings == "batch_norm_cartpole":
        assert single.unwrapped._env._step_count == steps  # dm_control's
    else:
        assert single.get_wrapper_attr("_elapsed_steps") == steps  # TimeLimit's


def test_prioritised_replay(model_of):
    buffer = model_of("prioritized_pendulum", "prioritized").replay_buffer
    assert isinstance(buffer, PrioritizedReplayBuffer)
    assert not isinstance(model_of("prioritized_pendulum", "uniform").replay_buffer, PrioritizedReplayBuffer)


def test_figure2_has_the_mean_and_a_band_over_seeds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    figure2 = importlib.import_module("figure2")
    for variant, of in {"paper": (0.0, 3.0, 30.0), "no-batch-norm": (7.0,)}.items():
        for seed, value in enumerate(of):
            folder = tmp_path / variant / f"Pendulum-v1_seed{seed}"
            folder.mkdir(parents=True)
            result = {"env": "Pendulum-v1", "variant": variant, "evaluation_steps": [100, 200]}
            result["evaluation_returns"] = [[value - 1, value + 1], [value + 1]]
            (folder / "result.json").write_text(json.dumps(result))
    figure, axes = plt.subplots()
    figure2.draw(axes, figure2.read(tmp_path))
    plain, paper = axes.get_lines()
    assert (paper.get_color(), paper.get_label()) == ("tab:green", "target networks, batch norm")
    np.testing.assert_allclose(paper.get_xydata(), [(100, 11), (200, 12)])
    np.testing.assert_allclose(plain.get_xydata(), [(100, 7), (200, 8)])
    (band,) = axes.collections  # one run has none
    # All of three draws are the worst with probability 1/27 > 2.5 %: the interval's ends are worst and best
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(100, 0), (200, 1), (100, 30), (200, 31)}
    plt.close(figure)
    monkeypatch.setattr(sys, "argv", ["figure2.py", str(tmp_path), "--out", str(tmp_path / "f.png")])
    figure2.main()
    assert (tmp_path / "f.png").stat().st_size > 0
    monkeypatch.setattr(sys, "argv", ["figure2.py", str(tmp_path / "paper")])
    with pytest.raises(SystemExit):
        figure2.main()
