"""The benchmark of Figure 2 in a tiny form; that its variants are what they are called; what it draws."""

import json
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from PIL import Image

from ddpg_ext.ddpg_paper.update import td_targets


@pytest.fixture(scope="module")
def figure2(load_benchmark):
    return load_benchmark("figure2")


def settings(figure2, variant, env="Pendulum-v1", seed=0, steps=200):
    repeat = 3 if variant == "pixels" else 1
    return figure2.Run(variant, env, seed, steps, eval_freq=steps // 2, episodes=1, repeat=repeat)


def fake_result(figure2, variant, seed, value=0.0, **changes):
    run = settings(figure2, variant, seed=seed)._replace(**changes)
    return {**run._asdict(), "curve": [(100, value), (200, value + 1)], "seconds": 1, "versions": {}}


def test_runs_then_only_missing_runs(figure2, run_benchmark, tmp_path, monkeypatch, capsys):
    args = "--envs Pendulum-v1 --seeds 3 --steps 200 --eval-freq 100 --episodes 2 --jobs 2 --variants both targets"
    out = run_benchmark("figure2", *args.split(), "--out", tmp_path)
    assert "to do: 2 of 2 runs" in out
    results = json.loads((tmp_path / "figure2.json").read_text())
    assert {result["variant"] for result in results} == {"both", "targets"}
    for result in results:
        assert [step for step, _ in result["curve"]] == [100, 200]
        assert {"python", "torch", "stable_baselines3", "ddpg_ext"} <= result["versions"].keys()
        last = f"{result['curve'][-1][1]:.0f}"
        assert f"| 200 | {last} | {last} |" in out

    before = (tmp_path / "figure2.json").read_bytes()
    (tmp_path / "figure2.png").unlink()
    monkeypatch.setattr(sys, "argv", ["figure2.py", *args.split(), "--out", str(tmp_path)])
    figure2.main()
    assert "to do: 0 of 2 runs" in capsys.readouterr().out
    assert (tmp_path / "figure2.json").read_bytes() == before
    with Image.open(tmp_path / "figure2.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 2


def test_an_interruption_loses_only_the_run_at_hand(figure2, tmp_path, monkeypatch):
    trained = []

    def train(run):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(run)
        return fake_result(figure2, run.variant, run.seed)

    # `map` is lazy, as the processes are: the first results are there before the later runs begin
    monkeypatch.setattr(figure2, "each_in_its_process", lambda train, runs, jobs: map(train, runs))
    monkeypatch.setattr(figure2, "train", train)
    args = "--envs Pendulum-v1 --seeds 0 1 --steps 200 --eval-freq 100 --episodes 1 --variants both targets"
    monkeypatch.setattr(sys, "argv", ["figure2.py", *args.split(), "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        figure2.main()
    assert len(figure2.load(tmp_path / "figure2.json")) == 2
    first, trained[:] = list(trained), []
    figure2.main()
    assert len(set(first + trained)) == 4
    assert len(figure2.load(tmp_path / "figure2.json")) == 4


def test_results_of_other_settings_make_room(figure2, tmp_path):
    path = tmp_path / "new" / "figure2.json"
    for variant, seed in (("both", 0), ("both", 1), ("targets", 0)):
        figure2.keep(fake_result(figure2, variant, seed), path)
    figure2.keep(fake_result(figure2, "both", 1, value=5.0), path)  # the same run again
    kept = {(result["variant"], result["seed"]): result["curve"][0][1] for result in figure2.load(path)}
    assert kept == {("targets", 0): 0.0, ("both", 0): 0.0, ("both", 1): 5.0}
    figure2.keep(fake_result(figure2, "both", 2, steps=400), path)  # a curve cannot be drawn of runs of two lengths
    kept = [(result["variant"], result["seed"]) for result in figure2.load(path)]
    assert kept == [("targets", 0), ("both", 2)]


@pytest.mark.parametrize("executor", ["fast", "eager"])
def test_no_targets_is_dpg_without_target_networks(figure2, executor):
    env = figure2.make_env(settings(figure2, "no targets"), 1, seed=0)
    model = figure2.paper(env, 0, executor=executor, **figure2.VARIANTS["no targets"].arguments)
    assert model.policy.batch_norm is True
    model.learn(70)
    policy = model.policy
    for _ in range(3):
        model.learn(1, reset_num_timesteps=False)
        # After an update, a target is its network: parameters and running averages, to the last bit
        for target, online in zip(*policy.target_pairs(), strict=True):
            assert th.equal(target, online)
        # ... so that the next update's y is that of the networks, with the minibatch's statistics
        batch = model.replay_buffer.sample(64)
        policy.set_training_mode(True)
        averages = [buffer.clone() for buffer in policy.buffers()]
        with th.no_grad():
            next_q = policy.critic(batch.next_observations, policy.actor(batch.next_observations))
            expected = batch.rewards + model.gamma * (1 - batch.dones) * next_q
        for buffer, before in zip(policy.buffers(), averages, strict=True):
            buffer.copy_(before)
        assert th.equal(td_targets(policy, batch, model.gamma), expected)


def test_variants_differ_in_what_they_are_named_after(figure2):
    models = {}
    for variant in figure2.VARIANTS:
        run = settings(figure2, variant)
        models[variant] = figure2.make_model(run, figure2.make_env(run, 1, seed=0), run.steps)
    described = {name: (model.tau, model.policy.batch_norm) for name, model in models.items()}
    with_targets = {"targets": (1e-3, False), "both": (1e-3, True), "pixels": (1e-3, False)}
    assert described == {"no targets": (1.0, True), **with_targets}
    assert {name: model.batch_size for name, model in models.items() if model.batch_size != 64} == {"pixels": 16}
    others = {(m.qf_weight_decay, m.learning_rate, m.qf_learning_rate, m.gamma) for m in models.values()}
    assert others == {(1e-2, 1e-4, 1e-3, 0.99)}


def simulated_steps(env):
    """How many steps of the simulation one of the agent is."""
    env.reset()
    env.step(np.zeros((1, 1), np.float32))
    return env.envs[0].get_wrapper_attr("_elapsed_steps")  # TimeLimit's


def test_pixels(figure2):
    run = settings(figure2, "pixels", steps=120)
    env = figure2.make_env(run, 1, seed=0)
    assert env.observation_space.shape == (64, 64, 9)
    assert simulated_steps(env) == 3
    assert simulated_steps(figure2.make_env(run._replace(repeat=9), 1, seed=0)) == 9
    result = figure2.train(run)
    assert [steps for steps, _ in result["curve"]] == [60, 120]  # of the environment: 20 and 40 of the agent's


def test_dm_control(figure2):
    run = settings(figure2, "targets", "dm_control/cartpole-swingup-v0", steps=1800)._replace(repeat=9)
    space = figure2.make_env(run, 2, seed=0).observation_space
    assert isinstance(space, spaces.Box)
    assert space.shape == (5,)
    result = figure2.train(run)
    assert [step for step, _ in result["curve"]] == [900, 1800]
    assert all(0 <= mean <= 1000 for _, mean in result["curve"])
    assert {"mujoco", "dm_control"} <= result["versions"].keys()


def test_curves_have_the_mean_and_a_band_over_seeds(figure2):
    variants = {"both": (0.0, 3.0, 30.0), "targets": (7.0,)}
    results = [fake_result(figure2, name, s, value) for name, of in variants.items() for s, value in enumerate(of)]
    figure, axes = plt.subplots()
    figure2.draw(axes, results, {name: figure2.VARIANTS[name].style for name in variants})
    both, targets = axes.get_lines()
    assert (both.get_color(), both.get_label()) == ("tab:green", "target networks, batch norm")
    np.testing.assert_allclose(both.get_xydata(), [(100, 11), (200, 12)])
    np.testing.assert_allclose(targets.get_xydata(), [(100, 7), (200, 8)])
    (band,) = axes.collections  # one run has none
    # All of three draws are the worst with probability 1/27 > 2.5 %: the interval's ends are worst and best
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(100, 0), (200, 1), (100, 30), (200, 31)}
    plt.close(figure)


def test_the_band_is_a_95_percent_interval(figure2):
    seeds = np.random.default_rng(1).normal(3.0, 2.0, size=(200, 4))
    low, high = sys.modules["learning"].interval(seeds)
    error = 1.96 * seeds.std(axis=0) / np.sqrt(200)
    np.testing.assert_allclose(low, seeds.mean(axis=0) - error, atol=0.03)
    np.testing.assert_allclose(high, seeds.mean(axis=0) + error, atol=0.03)


def test_nothing_to_draw(figure2, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["figure2.py", "--plot", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no results to draw"):
        figure2.main()
