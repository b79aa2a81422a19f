"""SB3's callbacks drive, watch and stop DDPGPaper as they do SB3's own algorithms."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import PointEnv, same, small_model, weights

from ddpg_ext import DDPGPaper, InvalidArgumentTypeError


class Remember(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, dict[str, th.Tensor]] = {}

    def _on_step(self) -> bool:
        self.weights[self.num_timesteps] = weights(self.model.policy)
        return True


def test_eval_callback_keeps_the_best_model_and_the_evaluations(tmp_path):
    model, remember = small_model(learning_rate=1e-2), Remember()
    folders = {"best_model_save_path": str(tmp_path), "log_path": str(tmp_path)}
    callback = EvalCallback(Monitor(PointEnv()), eval_freq=25, n_eval_episodes=3, verbose=0, **folders)
    model.learn(150, callback=[remember, callback])
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [25, 50, 75, 100, 125, 150]
    assert evaluations["results"].shape == (6, 3)
    means = evaluations["results"].mean(axis=1)
    best = DDPGPaper.load(tmp_path / "best_model.zip", device="cpu")
    assert same(weights(best.policy), remember.weights[int(evaluations["timesteps"][means.argmax()])])
    # With and without evaluations in between, the weights are equal bit for bit
    assert same(weights(model.policy), weights(small_model(learning_rate=1e-2).learn(150).policy))


@pytest.mark.parametrize("value", [False, np.bool_(False), th.tensor(False)])
def test_a_callback_that_returns_false_stops_at_once(value):
    model = small_model().learn(50, callback=lambda *_: value)
    assert (model.num_timesteps, model.replay_buffer.size()) == (1, 0)


def test_checkpoints_are_the_model_as_it_was(tmp_path):
    model, remember = small_model(VecNormalize(DummyVecEnv([PointEnv]))), Remember()
    checkpoints = CheckpointCallback(30, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    model.learn(60, callback=[remember, checkpoints])
    for step in (30, 60):
        loaded = DDPGPaper.load(tmp_path / f"rl_model_{step}_steps.zip", device="cpu")
        assert loaded.num_timesteps == step
        assert same(weights(loaded.policy), remember.weights[step])
        loaded.load_replay_buffer(tmp_path / f"rl_model_replay_buffer_{step}_steps.pkl")
        # A callback runs before its step's transition is stored
        assert loaded.replay_buffer.size() == step - 1
        file = tmp_path / f"rl_model_vecnormalize_{step}_steps.pkl"
        # One observation more than steps: the reset's
        assert VecNormalize.load(str(file), DummyVecEnv([PointEnv])).obs_rms.count == pytest.approx(step + 1, abs=1e-3)


def test_events_in_their_order():
    """One training start and end; per step a rollout start, a step, a rollout end."""
    events: list[str] = []

    class Events(BaseCallback):
        def _on_step(self):
            events.append("step")
            return True

    for name in ("_on_training_start", "_on_rollout_start", "_on_rollout_end", "_on_training_end"):
        setattr(Events, name, lambda self, name=name: events.append(name[4:]))
    small_model(train_freq=2).learn(4, callback=Events())
    rollout = ["rollout_start", "step", "step", "rollout_end"]
    assert events == ["training_start", *rollout, *rollout, "training_end"]


@pytest.mark.parametrize(
    "callback",
    [
        CallbackList([StopTrainingOnRewardThreshold]),
        EveryNTimesteps(5, StopTrainingOnRewardThreshold),
        [EvalCallback(PointEnv(), callback_on_new_best=StopTrainingOnRewardThreshold)],
        EvalCallback(PointEnv(), callback_after_eval=StopTrainingOnRewardThreshold),
    ],
    ids=["list", "event", "new best", "after evaluation"],
)
def test_classes_within_callbacks_are_named(callback):
    with pytest.raises(InvalidArgumentTypeError, match=r"pass `StopTrainingOnRewardThreshold\(...\)`"):
        small_model(PointEnv()).learn(10, callback=callback)
