"""
A training process to be killed: see test_resume_after_kill.py.

It imports everything once, and then forks a new process for each line on its standard input, ``<task> <folder>``. The
new process resumes the run of the folder, or begins it. It appends the step where it resumed to ``resumed``, and leaves
``final.npz`` at the end. For each, the process id is printed, and when it has ended, its status.
"""

import os
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import drawn_next, small_model, state_of

from ddpg_ext import CheckpointNotFoundError, DDPGPaper, LinearDecay, SnapshotCallback
from ddpg_ext.buffers import PrioritizedReplayBuffer

#: environment, steps of an episode at most, number of environments, what replaces the default buffer
TASKS = {
    "pendulum": ("Pendulum-v1", 40, 1, {}),
    "several": ("InvertedPendulum-v5", 60, 3, {"replay_buffer_class": ReplayBuffer}),
    "prioritised": (
        *("InvertedPendulum-v5", 60, 1),
        {
            "replay_buffer_class": PrioritizedReplayBuffer,
            "replay_buffer_kwargs": {"n_steps": 3, "beta": LinearDecay(1200, start=0.4, end=1.0)},
        },
    ),
    "files": ("InvertedPendulum-v5", 60, 1, {"replay_buffer_kwargs": {"storage": "memmap"}}),
}
STEPS = 600


def make_env(env_id: str, max_steps: int, n_envs: int) -> VecNormalize:
    return VecNormalize(
        DummyVecEnv([lambda: Monitor(gym.make(env_id, max_episode_steps=max_steps)) for _ in range(n_envs)])
    )


def train(task: str, folder: str) -> None:
    warnings.filterwarnings("error", message=".*bit for bit")
    *settings, buffer = TASKS[task]
    env, custom = make_env(*settings), {}
    if task == "files":
        custom = buffer = {"replay_buffer_kwargs": {"storage": "memmap", "directory": os.path.join(folder, "files")}}
    try:
        model = DDPGPaper.resume(folder, env, custom_objects=custom)
        with open(os.path.join(folder, "resumed"), "a") as file:
            print(model.num_timesteps, file=file)
    except CheckpointNotFoundError:
        # A buffer that is full before the end, so that its position matters
        model = small_model(env, buffer_size=250, seed=7, **buffer)
    snapshots = SnapshotCallback(folder, every=60, keep=2)
    model.learn(STEPS - model.num_timesteps, callback=snapshots, reset_num_timesteps=False)

    final = state_of(model) | drawn_next(model) | {"noise": np.ravel(model.action_noise())}
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
