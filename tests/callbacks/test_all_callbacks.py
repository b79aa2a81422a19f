"""All callbacks: training with and without them is the same, and wrong arguments are refused."""

import gymnasium as gym
import pytest
from gymnasium import make
from stable_baselines3.common.vec_env import SubprocVecEnv
from toy_envs import ToyEnv
from toys import assert_same_arrays, small_model, weights_of

from ddpg_ext import (
    DDPGPaperError,
    EpisodeVideoCallback,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    LivePlotCallback,
    QValueBiasCallback,
    SaturationMonitor,
    SnapshotCallback,
    export_onnx,
    record_episode,
)


@pytest.mark.parametrize("executor", ["eager", "fast"])
def test_training_is_the_same_bit_for_bit(executor, tmp_path):
    plain, watched = (small_model(make("Pendulum-v1"), executor=executor) for _ in range(2))
    callbacks = [
        EpisodeVideoCallback("Pendulum-v1", tmp_path, every=20, max_steps=3),
        LivePlotCallback(tmp_path / "curves.png", every=20),
        QValueBiasCallback("Pendulum-v1", every=30, n_eval_episodes=1),
        SaturationMonitor(every=7),
    ]
    plain.learn(80)
    watched.learn(80, callback=callbacks)
    assert_same_arrays(weights_of(plain), weights_of(watched))


def test_arguments_out_of_range(tmp_path):
    needed = {
        **{EpisodeVideoCallback: {"env": ToyEnv(), "path": tmp_path}, QValueBiasCallback: {"env": ToyEnv()}},
        **{LivePlotCallback: {"path": tmp_path / "curves.png"}, SaturationMonitor: {}},
    }
    numbers = [(EpisodeVideoCallback, "max_steps"), (LivePlotCallback, "window"), (SaturationMonitor, "window")]
    numbers += [(QValueBiasCallback, "n_eval_episodes"), (SaturationMonitor, "patience")]
    for callback, name in [*numbers, *((callback, "every") for callback in needed)]:
        with pytest.raises(InvalidArgumentError, match=f"`{name}` must be a whole number above 0, got 0"):
            callback(**needed[callback], **{name: 0})
    with pytest.raises(InvalidArgumentError, match=r"`limit` must be a number in \(0, 1\], got 0.0"):
        SaturationMonitor(limit=0.0)
    with pytest.raises(InvalidArgumentError, match="`truncated` 'drops' is unknown; did you mean 'drop'"):
        QValueBiasCallback(ToyEnv(), truncated="drops")


def test_what_is_no_path_is_refused_by_name():
    model, env = small_model(), ToyEnv()
    for use in (
        lambda: EpisodeVideoCallback(env, 5),
        lambda: LivePlotCallback(path=5),
        lambda: QValueBiasCallback(env, path=5),
        lambda: record_episode(model, model.env, 5),
        lambda: export_onnx(model, None),
    ):
        with pytest.raises(InvalidArgumentTypeError, match="`path` must be a path"):
            use()


def unpicklable():
    env = ToyEnv()
    env.spec = gym.envs.registration.EnvSpec("Robot-v0", entry_point=lambda: None, kwargs={"reward": lambda: 0})
    return env


def test_titles_need_no_answer_of_other_processes(tmp_path):
    """Their ``spec`` may be impossible to send."""
    env = SubprocVecEnv([unpicklable, unpicklable], start_method="fork")
    callbacks = [LivePlotCallback(tmp_path / "curves.png", every=20), QValueBiasCallback(ToyEnv(), 20)]
    try:
        small_model(env).learn(40, callback=callbacks)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("cls", "needed"), [(SnapshotCallback, {"path": "folder"}), (LivePlotCallback, {"path": "curves.png"})]
)
@pytest.mark.parametrize("verbose", ["1", None, -1])
def test_invalid_levels_of_messages(cls, needed, verbose):
    with pytest.raises(DDPGPaperError, match="`verbose` must be a whole number >= 0"):
        cls(**needed, verbose=verbose)
