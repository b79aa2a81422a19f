"""
DDPGPaper from pixels: how it learns, and how fast it is.

    python benchmarks/pixels.py learn --env Pendulum-v1 --settings tuned --seeds 0 1 2 --steps 20000
    python benchmarks/pixels.py plot runs/pixels/*.json --out docs/_static/pixels_pendulum.png
    python benchmarks/pixels.py speed

`learn` writes one JSON file per run to --out, anew after each evaluation, so that an interrupted run has its curve.
Steps are the agent's: with pixels, each is three of the simulation. `plot` draws curves over the simulation's steps.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from ddpg_ext import DDPGPaper
from ddpg_ext.envs import PixelActionRepeat

REPEAT = 3

#: per variant: the policy, and arguments of DDPGPaper that are not the default. A million images would need 37 GB
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixels, paper": ("CnnPolicy", {"buffer_size": 100_000}),
    "pixels, tuned": (
        "CnnPolicy",
        {
            "buffer_size": 100_000,
            "learning_rate": 3e-4,
            "qf_weight_decay": 0.0,
            "tau": 1e-2,
            "gamma": 0.97,
        },
    ),
    "low-dimensional": ("MlpPolicy", {}),
}


def make_env(env_id: str, policy: str) -> gym.Env:
    """The environment as it is, or from pixels."""
    if env_id.startswith("dm_control/"):
        import shimmy

        gym.register_envs(shimmy)
    if policy == "CnnPolicy":
        kwargs = {} if env_id.startswith("CarRacing") else {"render_mode": "rgb_array"}
        env = gym.make(env_id, **kwargs)
        if env_id == "Pendulum-v1":
            env.unwrapped.screen_dim = 128  # drawn in a tenth of the time that its 500x500 pixels take
        return Monitor(PixelActionRepeat(env, REPEAT))
    env = gym.make(env_id)
    return Monitor(gym.wrappers.FlattenObservation(env) if env_id.startswith("dm_control/") else env)


class Curve(BaseCallback):
    """
    Evaluates without noise every so often, and writes what there is to a file.

    :param env: to evaluate on
    :param eval_freq: agent's steps between two evaluations
    :param episodes: of an evaluation
    :param result: of the run so far
    :param path: where it is written
    """

    def __init__(self, env: gym.Env, eval_freq: int, episodes: int, result: dict[str, Any], path: Path) -> None:
        super().__init__()
        self.env, self.eval_freq, self.episodes, self.result, self.path = env, eval_freq, episodes, result, path
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            mean, _ = evaluate_policy(self.model, self.env, self.episodes)
            self.result["curve"].append((self.num_timesteps, mean))
            self.result["training_episodes"] = len(self.model.ep_info_buffer or [])
            self.result["seconds"] = time.perf_counter() - self.start
            self.write()
            print(f"{self.path.stem}: {self.num_timesteps} steps, {self.result['seconds']:.0f} s: {mean:.1f}", flush=True)
        return True

    def write(self) -> None:
        """Replace the file in one go."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.result, indent=1) + "\n")
        temporary.replace(self.path)
