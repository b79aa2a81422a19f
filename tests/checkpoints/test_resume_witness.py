"""A resumed run continues bit for bit, or says that it does not."""

import json
import os
import shutil
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
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
from toys import CountingEnv, same, small_model, weights

from ddpg_ext import CheckpointError, DDPGPaper, SnapshotCallback
from ddpg_ext.checkpoints import training_state
from ddpg_ext.checkpoints.snapshots import snapshots
from ddpg_ext.checkpoints.witness import witness_file
from ddpg_ext.common.environments import register
from ddpg_ext.envs import FreshWorld

STEPS = 120


def limited(env_id, steps, *layers):
    env = wrappers.TimeLimit(gym.make(env_id).unwrapped, steps)
    for layer in layers:
        env = layer(env)
    return env


def pendulum(*layers, steps=15):
    return limited("Pendulum-v1", steps, *layers)


def train(folder, env, model=None, steps=STEPS, every=20, callbacks=(), **kwargs):
    """Train a new model, or continue one until this many steps."""
    model = model or small_model(env, seed=3, policy_kwargs={"net_arch": [8, 8]})
    callback = [*callbacks, SnapshotCallback(folder, every=every, keep=99, **kwargs)]
    return model.learn(steps - model.num_timesteps, callback=callback, reset_num_timesteps=False)


def resume_and_train(tmp_path, make_env, index=1, custom_objects=None, **kwargs):
    """Resume a run from one of its snapshots, and return its model at the end, and its warnings."""
    file = sorted((tmp_path / "whole").glob("*.zip"))[index]
    shutil.rmtree(tmp_path / "resumed", ignore_errors=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = DDPGPaper.resume(file, make_env(), device="cpu", custom_objects=custom_objects)
        train(tmp_path / "resumed", None, resumed, **kwargs)
    return resumed, [str(warning.message) for warning in caught if "bit for bit" in str(warning.message)]


def assert_exact(tmp_path, make_env, **kwargs):
    whole = train(tmp_path / "whole", make_env(), **kwargs)
    resumed, told = resume_and_train(tmp_path, make_env, **kwargs)
    assert same(weights(whole.policy), weights(resumed.policy))
    assert not told


WRAPPERS = {
    "both": [wrappers.NormalizeObservation, wrappers.NormalizeReward, wrappers.RecordEpisodeStatistics],
    "frames": [wrappers.NormalizeObservation, lambda env: wrappers.FrameStackObservation(env, 3)],
    "delay": [lambda env: wrappers.DelayObservation(env, 2), wrappers.NormalizeReward],
    "sticky": [
        *(lambda env: wrappers.StickyAction(env, 0.5), wrappers.TimeAwareObservation, wrappers.OrderEnforcing),
        *(lambda env: wrappers.RescaleAction(env, -1.0, 1.0), lambda env: wrappers.TransformReward(env, np.tanh)),
    ],
}


@pytest.mark.parametrize("layers", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_of_gymnasium_keep_their_state(tmp_path, layers):
    assert_exact(tmp_path, lambda: pendulum(*layers))


def test_wrappers_keep_their_state_where_snapshots_reset(tmp_path):
    layers = WRAPPERS["both"]
    assert_exact(tmp_path, lambda: DummyVecEnv([lambda: Monitor(pendulum(*layers))] * 2), reset=True)


def test_settings_are_those_of_the_environment_that_is_passed(tmp_path):
    train(tmp_path / "whole", pendulum(wrappers.NormalizeReward))
    env = DDPGPaper.resume(
        tmp_path / "whole", pendulum(lambda env: wrappers.NormalizeReward(env, gamma=0.5), steps=30)
    ).get_env()
    assert env.get_attr("gamma") == [0.5]
    assert env.get_attr("_max_episode_steps") == [30]
    assert env.get_attr("return_rms")[0].count > 50
    with pytest.raises(CheckpointError, match=r"wrappers differ from the run's.*NormalizeReward"):
        DDPGPaper.resume(tmp_path / "whole", pendulum())


def test_states_of_another_kind_are_refused():
    env = pendulum(wrappers.NormalizeReward)
    states = [{"env": 1}, {"observation_space": [1]}, {"_action_space": [1]}, {"return_rms": [1]}, {"step": print}]
    states += [{"discounted_reward": np.zeros(2)}, {"_update_running_mean": "yes"}]
    states += [{"return_rms": {"mean": 0.0, "var": 1.0}}]
    states += [{"return_rms": {"mean": np.zeros(3), "var": np.ones(3), "count": 1}}]
    for state in [*({"0.NormalizeReward": state} for state in states), {"2.PendulumEnv": {"g": 1.0}}]:
        with pytest.raises(CheckpointError, match="wrappers differ from the run's"):
            training_state.set_wrapper_states(env, state)


@pytest.mark.parametrize(("env_id", "layers"), [("BipedalWalker-v3", [FreshWorld]), ("LunarLanderContinuous-v3", [])])
def test_fresh_worlds(tmp_path, env_id, layers):
    assert_exact(tmp_path, lambda: limited(env_id, 25, *layers))


def test_an_old_world_is_told_of_at_the_first_snapshot(tmp_path):
    with pytest.warns(UserWarning, match=r"bit for bit.*FreshWorld"):
        train(tmp_path, limited("BipedalWalker-v3", 25), steps=60)


def test_dm_control_is_refused_before_the_crash(tmp_path):
    register("dm_control/pendulum-swingup-v0")

    def make_env():
        return Monitor(wrappers.FlattenObservation(gym.make("dm_control/pendulum-swingup-v0", max_episode_steps=15)))

    with pytest.raises(CheckpointError, match="reset=True"):
        train(tmp_path / "refused", make_env())
    assert_exact(tmp_path, make_env, reset=True)


class Learns(CountingEnv):
    """Gives more reward in each episode, which its reset does not tell."""

    def _observation(self):
        self.reward = float(self.episode + 1)
        return self.np_random.random(3, np.float32)


def test_a_state_that_reset_keeps_is_told_of_once(tmp_path):
    whole = train(tmp_path / "whole", Learns())
    resumed, told = resume_and_train(tmp_path, Learns)
    assert not same(weights(whole.policy), weights(resumed.policy))
    assert len(told) == 1
    assert f"{sorted((tmp_path / 'whole').glob('*.zip'))[1]}: the resumed run differs" in told[0]
    assert "within 1 steps after it" in told[0]


def test_other_settings_are_told_of(tmp_path):
    train(tmp_path / "whole", pendulum())
    _, told = resume_and_train(tmp_path, pendulum, custom_objects={"qf_learning_rate": 2e-3})
    assert len(told) == 1
    assert "settings have changed" in told[0]


def test_damaged_witnesses_are_not_compared(tmp_path):
    whole = train(tmp_path / "whole", pendulum(), steps=40)
    file = witness_file(snapshots(tmp_path / "whole")[0])
    snapshot = json.loads(file.read_bytes())["snapshot"]
    contents = [b"", b"[1]", b"[" * 9_000, b"\xff", b'{"snapshot": 1, "hashes": [1, 2]}', b'{"snapshot": 1}']
    contents += [b'{"snapshot": %d, "hashes": %s}' % (snapshot, hashes) for hashes in (b"null", b"[]")]
    for content in contents:
        file.write_bytes(content)
        resumed, told = resume_and_train(tmp_path, pendulum, index=-1, steps=40)
        assert same(weights(whole.policy), weights(resumed.policy))
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


def callbacks(folder):
    stop = StopTrainingOnNoModelImprovement(100)
    kwargs = {"eval_freq": 25, "n_eval_episodes": 2, "log_path": folder, "verbose": 0}
    evaluate = EvalCallback(make_vec_env(pendulum, seed=1), callback_after_eval=stop, **kwargs)
    return evaluate, stop, StopTrainingOnMaxEpisodes(1000), EveryNTimesteps(50, StopTrainingOnMaxEpisodes(5000))


def test_callbacks_of_sb3_continue(tmp_path):
    evaluate, _, episodes, every = callbacks(str(tmp_path / "a"))
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
