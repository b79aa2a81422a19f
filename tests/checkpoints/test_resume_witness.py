"""A resumed run continues bit for bit, or says that it does not."""

import json
import os
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces, wrappers
from stable_baselines3.common.callbacks import (
    CallbackList,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from ddpg_ext import CheckpointError, DDPGPaper, SnapshotCallback
from ddpg_ext.checkpoints import training_state
from ddpg_ext.checkpoints.snapshots import snapshots
from ddpg_ext.checkpoints.witness import witness_file
from ddpg_ext.common.environments import register
from ddpg_ext.envs import FreshWorld

th.set_num_threads(1)
STEPS = 120


def pendulum(*layers, steps=15):
    env = wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, steps)
    for layer in layers:
        env = layer(env)
    return env


def box2d(env_id, *layers):
    env = wrappers.TimeLimit(gym.make(env_id).unwrapped, 25)
    for layer in layers:
        env = layer(env)
    if env_id.startswith("CarRacing"):
        env = wrappers.TransformObservation(
            env, lambda image: image[::12, ::12].ravel(), spaces.Box(0, 255, (192,), np.uint8)
        )
    return env


def train(folder, env, model=None, steps=STEPS, every=20, callbacks=(), **kwargs):
    """Train a new model, or continue one until this many steps."""
    model = model or DDPGPaper(
        "MlpPolicy", env, buffer_size=500, batch_size=8, seed=3, policy_kwargs={"net_arch": [8, 8]}, device="cpu"
    )
    callback = [*callbacks, SnapshotCallback(folder, every=every, keep=99, **kwargs)]
    return model.learn(steps - model.num_timesteps, callback=callback, reset_num_timesteps=False)


def resume_and_train(tmp_path, make_env, index=1, custom_objects=None, **kwargs):
    """Resume a run from one of its snapshots, and return its model at the end, and its warnings."""
    file = sorted((tmp_path / "whole").glob("*.zip"))[index]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = DDPGPaper.resume(file, make_env(), device="cpu", custom_objects=custom_objects)
        train(tmp_path / "resumed", None, resumed, **kwargs)
    return resumed, [str(warning.message) for warning in caught if "bit for bit" in str(warning.message)]


def weights(model):
    return th.cat([tensor.flatten().double() for tensor in model.policy.state_dict().values()])


def assert_exact(tmp_path, make_env, **kwargs):
    whole = train(tmp_path / "whole", make_env(), **kwargs)
    resumed, told = resume_and_train(tmp_path, make_env, **kwargs)
    assert th.equal(weights(whole), weights(resumed))
    assert not told


WRAPPERS = {
    "rewards": [wrappers.NormalizeReward],
    "observations": [wrappers.NormalizeObservation],
    "both": [wrappers.NormalizeObservation, wrappers.NormalizeReward, wrappers.RecordEpisodeStatistics],
    "frames": [wrappers.NormalizeObservation, lambda env: wrappers.FrameStackObservation(env, 3)],
    "delay": [lambda env: wrappers.DelayObservation(env, 2), wrappers.NormalizeReward],
    "sticky": [lambda env: wrappers.StickyAction(env, 0.5), wrappers.NormalizeReward],
    "time": [
        wrappers.TimeAwareObservation,
        wrappers.OrderEnforcing,
        lambda env: wrappers.RescaleAction(env, -1.0, 1.0),
    ],
    "transformed": [lambda env: wrappers.TransformReward(env, lambda reward: reward / 8), wrappers.NormalizeReward],
}


@pytest.mark.parametrize("layers", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_of_gymnasium_keep_their_state(tmp_path, layers):
    assert_exact(tmp_path, lambda: pendulum(*layers))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_wrappers_keep_their_state_where_snapshots_reset(tmp_path, n_envs):
    layers = WRAPPERS["both"]
    assert_exact(tmp_path, lambda: DummyVecEnv([lambda: Monitor(pendulum(*layers))] * n_envs), reset=True)


def test_settings_are_those_of_the_environment_that_is_passed(tmp_path):
    train(tmp_path / "whole", pendulum(wrappers.NormalizeReward))
    env = DDPGPaper.resume(
        tmp_path / "whole", pendulum(lambda env: wrappers.NormalizeReward(env, gamma=0.5), steps=30)
    ).get_env()
    assert env.get_attr("gamma") == [0.5]
    assert env.get_attr("_max_episode_steps") == [30]
    assert env.get_attr("return_rms")[0].count > 50


def test_other_wrappers(tmp_path):
    train(tmp_path / "whole", pendulum(wrappers.NormalizeReward))
    with pytest.raises(CheckpointError, match=r"other wrappers.*NormalizeReward"):
        DDPGPaper.resume(tmp_path / "whole", pendulum())


@pytest.mark.parametrize(
    "state",
    [
        *(
            {"env": 1},
            {"observation_space": [1]},
            {"_action_space": [1]},
            {"return_rms": [1]},
            {"return_rms": {"mean": 0.0, "var": 1.0}},
        ),
        *({"discounted_reward": np.zeros(2)}, {"_update_running_mean": "yes"}, {"step": print}),
        {"return_rms": {"mean": np.zeros(3), "var": np.ones(3), "count": 1}},
    ],
    ids=str,
)
def test_states_of_another_kind_are_refused(state):
    env = pendulum(wrappers.NormalizeReward)
    with pytest.raises(CheckpointError, match="other wrappers"):
        training_state.set_wrapper_states(env, {"0.NormalizeReward": state})
    with pytest.raises(CheckpointError, match="other wrappers"):
        training_state.set_wrapper_states(env, {"2.PendulumEnv": {"g": 1.0}})


@pytest.mark.parametrize("env_id", ["BipedalWalker-v3", "CarRacing-v3", "LunarLanderContinuous-v3"])
def test_fresh_worlds(tmp_path, env_id):
    layers = () if env_id.startswith("LunarLander") else (FreshWorld,)
    assert_exact(tmp_path, lambda: box2d(env_id, *layers))


def test_an_old_world_is_told_of_at_the_first_snapshot(tmp_path):
    with pytest.warns(UserWarning, match=r"bit for bit.*FreshWorld"):
        train(tmp_path, box2d("BipedalWalker-v3"), steps=60)


def test_dm_control_is_refused_before_the_crash(tmp_path):
    register("dm_control/pendulum-swingup-v0")

    def make_env():
        env = gym.make("dm_control/pendulum-swingup-v0", max_episode_steps=15)
        return Monitor(wrappers.FlattenObservation(env))

    with pytest.raises(CheckpointError, match="reset=True"):
        train(tmp_path / "refused", make_env())
    assert_exact(tmp_path, make_env, reset=True)


class Learns(gym.Env):
    """Gives more reward in each episode, which its reset does not tell."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))
    episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self._left = self.episodes + 1, 10
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        self._left -= 1
        return self.np_random.random(2, np.float32), float(self.episodes), self._left == 0, False, {}


def test_a_state_that_reset_keeps_is_told_of_once(tmp_path):
    whole = train(tmp_path / "whole", Learns())
    resumed, told = resume_and_train(tmp_path, Learns)
    assert not th.equal(weights(whole), weights(resumed))
    assert len(told) == 1
    assert f"{sorted((tmp_path / 'whole').glob('*.zip'))[1]}: the resumed run differs" in told[0]
    assert "within 1 steps after it" in told[0]


def test_other_settings_are_told_of(tmp_path):
    train(tmp_path / "whole", pendulum())
    settings = {"qf_learning_rate": 2e-3}
    _, told = resume_and_train(tmp_path, pendulum, custom_objects=settings)
    assert len(told) == 1
    assert "settings have changed" in told[0]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1]", b"7", b"[" * 9_000, b"\xff", b'{"snapshot": 1, "hashes": [1, 2]}', b'{"snapshot": 1}'),
        *(b'{"snapshot": ID, "hashes": null}', b'{"snapshot": ID, "hashes": []}'),
    ],
)
def test_damaged_witnesses_are_not_compared(tmp_path, content):
    whole = train(tmp_path / "whole", pendulum(), steps=60)
    file = witness_file(snapshots(tmp_path / "whole")[0])
    file.write_bytes(content.replace(b"ID", str(json.loads(file.read_bytes())["snapshot"]).encode()))
    resumed, told = resume_and_train(tmp_path, pendulum, index=-1, steps=60)
    assert th.equal(weights(whole), weights(resumed))
    assert not told


def test_a_run_survives_without_its_folder(tmp_path):
    """The witness is not worth a run: a folder that was moved away makes no error until the next snapshot."""

    class Move(EveryNTimesteps):
        def _on_event(self):
            if (tmp_path / "whole").exists():
                os.rename(tmp_path / "whole", tmp_path / "moved")
            return True

    train(tmp_path / "whole", pendulum(), steps=32, callbacks=[Move(31, None)])
    assert snapshots(tmp_path / "moved")


# -------------------------------------------------------------------- callbacks


def callbacks(folder):
    stop = StopTrainingOnNoModelImprovement(100)
    evaluate = EvalCallback(
        make_vec_env(pendulum, seed=1),
        callback_after_eval=stop,
        eval_freq=25,
        n_eval_episodes=2,
        log_path=folder,
        verbose=0,
    )
    return evaluate, stop, StopTrainingOnMaxEpisodes(1000), EveryNTimesteps(50, StopTrainingOnMaxEpisodes(5000))


def test_callbacks_of_sb3_continue(tmp_path):
    first = callbacks(str(tmp_path / "a"))
    evaluate, _, episodes, every = first
    train(tmp_path / "whole", pendulum(), callbacks=[evaluate, CallbackList([episodes, every])])
    assert len(evaluate.evaluations_results) == STEPS // 25

    again = callbacks(str(tmp_path / "b"))
    steps = DDPGPaper.resume(tmp_path / "whole", pendulum()).num_timesteps
    resume_and_train(tmp_path, pendulum, index=-1, callbacks=[again[0], CallbackList([*again[2:]])], steps=steps + 1)
    done = steps // 25
    assert again[0].n_calls == steps + 1
    assert again[0].evaluations_timesteps == evaluate.evaluations_timesteps[:done]
    assert np.array_equal(again[0].evaluations_results, evaluate.evaluations_results[:done])
    means = np.mean(evaluate.evaluations_results[:done], axis=1)
    assert (again[0].best_mean_reward, again[0].last_mean_reward) == (means.max(), means[-1])
    assert again[1].last_best_mean_reward == means.max()
    assert again[1].n_calls == done
    assert again[2].n_episodes == steps // 15
    assert again[3].last_time_trigger == steps // 50 * 50
    assert again[0].eval_freq == 25
