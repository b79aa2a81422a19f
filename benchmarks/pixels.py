"""
DDPGPaper from pixels: how it learns, and how fast it is.

    python benchmarks/pixels.py learn --env Pendulum-v1 --variants tuned low-dimensional --seeds 0 1 2
    python benchmarks/pixels.py plot --env Pendulum-v1 --out runs/pixels
    python benchmarks/pixels.py speed

`learn` writes one JSON file per run to --out, anew after each episode, so that an interrupted run has its curve; runs
that are complete there are not repeated. Steps are the agent's: from pixels, each is three of the simulation.
`plot` draws the curves of all files there of an environment, and what the agent sees. `speed` measures the gradient step
and CarRacing-v3 end to end against SB3's DDPG.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# Before MuJoCo and pygame are imported: rendering without a display
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium as gym
import matplotlib
import numpy as np
import torch as th
from gymnasium import spaces
from learning import versions
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from ddpg_ext import DDPGPaper
from ddpg_ext.envs import PixelActionRepeat

matplotlib.use("Agg")

REPEAT = 3
PENDULUM, CAR, CARTPOLE = "Pendulum-v1", "CarRacing-v3", "dm_control/cartpole-balance-v0"

#: per variant: the policy, and what differs from the defaults, which are the paper's. A million images take 37 GB
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("CnnPolicy", {"buffer_size": 50_000}),
    "tuned": (
        "CnnPolicy",
        {"buffer_size": 50_000, "learning_rate": 3e-4, "qf_weight_decay": 0.0, "tau": 1e-2, "gamma": 0.97},
    ),
    "low-dimensional": ("MlpPolicy", {}),
}
#: the agent's steps, per environment
STEPS = {PENDULUM: 8_000, CAR: 100_000, CARTPOLE: 20_000}
#: dm_control's camera. On a CPU, shadows and reflections would take most of the time
CAMERA = {"height": 64, "width": 64, "camera_id": 0, "render_flag_overrides": {"shadow": False, "reflection": False}}


def make_env(env_id: str, from_pixels: bool, dark: bool = True) -> gym.Env:
    """
    :param env_id: one of those above, or another of dm_control
    :param from_pixels: as pictures, as in the examples; or as it is
    :param dark: give Pendulum-v1's pictures as negatives, on a black background instead of a white one
    :return: the environment, with records of its episodes
    """
    kwargs: dict[str, Any] = {"render_mode": "rgb_array"} if from_pixels and env_id != CAR else {}
    of_dm_control = env_id.startswith("dm_control/")
    if of_dm_control:
        import shimmy

        gym.register_envs(shimmy)
        kwargs["render_kwargs"] = CAMERA
    env = gym.make(env_id, **kwargs)
    if env_id == CAR:
        pedals = spaces.Box(-1, 1, (2,), np.float32)
        env = gym.wrappers.TransformAction(env, lambda a: np.array([a[0], max(a[1], 0), max(-a[1], 0)]), pedals)
    if not from_pixels:
        return Monitor(gym.wrappers.FlattenObservation(env) if of_dm_control else env)
    if env_id == PENDULUM:
        env.unwrapped.screen_dim = 128  # type: ignore[attr-defined] # 500x500 pixels take ten times as long to draw
    env = PixelActionRepeat(env, REPEAT)
    if env_id == PENDULUM and dark:
        env = gym.wrappers.TransformObservation(env, lambda picture: 255 - picture, env.observation_space)
    return Monitor(env)


class Curve(BaseCallback):
    """
    Evaluates without noise every so often, and writes what there is to a file after each episode.

    :param env: to evaluate on
    :param eval_freq: steps between two evaluations
    :param episodes: of an evaluation
    :param result: of the run so far
    :param path: where it is written
    """

    def __init__(self, env: gym.Env, eval_freq: int, episodes: int, result: dict[str, Any], path: Path) -> None:
        super().__init__()
        self.env, self.eval_freq, self.episodes, self.result, self.path = env, eval_freq, episodes, result, path
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.result["training"].append((self.num_timesteps, float(info["episode"]["r"])))
                self.write()
        if self.n_calls % self.eval_freq == 0:
            mean, _ = evaluate_policy(self.model, self.env, self.episodes)
            assert isinstance(mean, float)
            self.result["curve"].append((self.num_timesteps, mean))
            self.write()
            print(f"{self.path.stem}: {self.num_timesteps} steps, {self.result['seconds']} s, {mean:.1f}", flush=True)
        return True

    def write(self) -> None:
        """Replace the file in one go."""
        self.result["seconds"] = round(time.perf_counter() - self.start)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.result) + "\n")
        temporary.replace(self.path)


def learn(args: argparse.Namespace) -> None:
    """Train, one run after the other."""
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for variant in args.variants:
            name = f"{args.env.split('/')[-1]}_{variant}_{seed}"
            path = args.out / f"{name}.json"
            if not path.exists() or json.loads(path.read_text())["returns"] is None:
                train(args, variant, seed, path)


def train(args: argparse.Namespace, variant: str, seed: int, path: Path) -> None:
    """One run, up to the episodes of its final evaluation."""
    policy, kwargs = VARIANTS[variant]
    from_pixels = policy == "CnnPolicy"
    steps = args.steps or STEPS[args.env]
    if not from_pixels:
        steps *= REPEAT
    envs = [make_env(args.env, from_pixels, dark=variant != "paper") for _ in range(3)]
    for env, offset in zip(envs, (0, 1000, 2000), strict=True):
        env.reset(seed=seed + offset)
    model = DDPGPaper(policy, envs[0], seed=seed, **kwargs)
    settings = {name: value for name, value in kwargs.items() if name != "buffer_size"}
    result: dict[str, Any] = {"env": args.env, "variant": variant, "seed": seed, "steps": steps, "settings": settings}
    result |= {"repeat": REPEAT if from_pixels else 1, "curve": [], "training": [], "returns": None}
    result |= {"versions": versions()}
    curve = Curve(envs[1], max(steps // args.evaluations, 1), args.eval_episodes, result, path)
    model.learn(steps, callback=curve)
    returns, _ = evaluate_policy(model, envs[2], args.episodes, return_episode_rewards=True)
    result["returns"] = [float(value) for value in np.ravel(returns)]
    curve.write()
    model.save(path.with_suffix(".zip"))
    print(f"{path.stem}: {np.mean(result['returns']):.1f} over {args.episodes} episodes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("learn", help="train, and write learning curves")
    command.set_defaults(run=learn)
    command.add_argument("--env", choices=STEPS, default=PENDULUM)
    command.add_argument("--variants", nargs="+", choices=VARIANTS, default=["tuned"])
    command.add_argument("--seeds", type=int, nargs="+", default=[0])
    command.add_argument("--steps", type=int, help="the agent's steps from pixels, a third of the simulation's")
    command.add_argument("--evaluations", type=int, default=16, help="how many on the way")
    command.add_argument("--eval-episodes", type=int, default=4, help="of each of these")
    command.add_argument("--episodes", type=int, default=20, help="of the evaluation at the end")
    command.add_argument("--out", type=Path, default=Path("runs/pixels"), help="where the results go")

    args = parser.parse_args()
    th.set_num_threads(1)  # runs beside each other with more threads than cores slow each other down
    args.run(args)


if __name__ == "__main__":
    main()
