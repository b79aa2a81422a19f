"""
A training process to be killed: see test_resume_after_kill.py.

It imports everything once, and then forks a new process for each line on its standard input, ``<task> <folder>``. The
new process goes on with the run in the folder where its last snapshot is, or begins it, and leaves ``final.npz`` at the
end. For each, the process id is printed, and when it has ended, its status.
"""

import os
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ddpg_ext import CheckpointNotFoundError, DDPGPaper, LinearDecay, SnapshotCallback
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer

#: environment, steps of an episode at most, number of environments, steps in all, what replaces the default buffer
TASKS = {
    "pendulum": ("Pendulum-v1", 40, 1, 1600, {}),
    "mujoco": ("InvertedPendulum-v5", 60, 1, 1600, {}),
    "several": ("InvertedPendulum-v5", 60, 3, 1500, {}),
    "sb3": ("Pendulum-v1", 40, 1, 1200, {"replay_buffer_class": ReplayBuffer}),
    "prioritised-pendulum": ("Pendulum-v1", 40, 1, 1200, {"replay_buffer_class": PrioritizedReplayBuffer}),
    "prioritised-mujoco": (
        *("InvertedPendulum-v5", 60, 1, 1200),
        {
            "replay_buffer_class": PrioritizedReplayBuffer,
            "replay_buffer_kwargs": {"n_steps": 3, "beta": LinearDecay(1200, start=0.4, end=1.0)},
        },
    ),
    # `folder` stands for that of the run
    "files": (
        *("InvertedPendulum-v5", 60, 1, 1200),
        {
            "replay_buffer_class": PackedReplayBuffer,
            "replay_buffer_kwargs": {"storage": "memmap", "directory": "folder"},
        },
    ),
}


def make_env(env_id: str, max_steps: int, n_envs: int) -> VecNormalize:
    from stable_baselines3.common.monitor import Monitor

    return VecNormalize(
        DummyVecEnv([lambda: Monitor(gym.make(env_id, max_episode_steps=max_steps)) for _ in range(n_envs)])
    )


def train(task: str, folder: str) -> None:
    warnings.filterwarnings("error", message=".*bit for bit")
    env_id, max_steps, n_envs, steps, buffer = TASKS[task]
    env = make_env(env_id, max_steps, n_envs)
    custom = {}
    if "directory" in buffer.get("replay_buffer_kwargs", {}):
        kwargs = {**buffer["replay_buffer_kwargs"], "directory": os.path.join(folder, "files")}
        buffer = {**buffer, "replay_buffer_kwargs": kwargs}
        custom = {"custom_objects": {"replay_buffer_kwargs": kwargs}}
    try:
        model = DDPGPaper.resume(folder, env, **custom)
    except CheckpointNotFoundError:
        # A buffer that is full before the end, so that its position matters
        model = DDPGPaper(
            "MlpPolicy", env, buffer_size=700, batch_size=8, seed=7, policy_kwargs={"net_arch": [12, 12]}, **buffer
        )
    snapshots = SnapshotCallback(folder, every=60, keep=2)
    model.learn(steps - model.num_timesteps, callback=snapshots, reset_num_timesteps=False)

    final = {name: tensor.numpy() for name, tensor in model.policy.state_dict().items()}
    for name in ("actor", "critic"):
        for index, entry in getattr(model, name).optimizer.state_dict()["state"].items():
            final |= {f"{name}.optimizer.{index}.{key}": value.numpy() for key, value in entry.items()}
    final["obs_mean"], final["obs_var"] = env.obs_rms.mean, env.obs_rms.var
    final["ret_var"], final["returns"] = env.ret_rms.var, env.returns
    final["counts"] = np.array([model.num_timesteps, model._n_updates, model._episode_num])
    final["episodes"] = np.array([[info["r"], info["l"]] for info in model.ep_info_buffer])
    batch = model.replay_buffer.sample(100)
    final["drawn"] = np.concatenate([np.ravel(part) for part in batch if part is not None])
    final["next_random"] = np.array([np.random.random(), th.rand(()).item(), *np.ravel(model.action_noise())])
    np.savez(os.path.join(folder, "writing.npz"), **final)
    os.replace(os.path.join(folder, "writing.npz"), os.path.join(folder, "final.npz"))


def main() -> None:
    th.set_num_threads(1)
    for line in sys.stdin:
        task, folder = line.split()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(task, folder)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        time.sleep(0)


if __name__ == "__main__":
    main()
