"""
Measure how fast DDPGPaper learns from pixels, against SB3's DDPG: the gradient step, and CarRacing-v3 end to end.

    python benchmarks/pixels.py --json pixels.json

Learning is measured by sweeps: benchmarks/settings/pixels_*.yml.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # before pygame is imported, to render without a display

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import ddpg_ext
from ddpg_ext import DDPGPaper
from ddpg_ext.common.cnn import PaperCNN
from ddpg_ext.common.processor import describe_processor
from ddpg_ext.envs import PixelActionRepeat


def make_car() -> gym.Env:
    return Monitor(PixelActionRepeat(gym.make("CarRacing-v3")))


class Noise(gym.Env):
    """Return random frames of the paper's size, because the time of a gradient step does not depend on the content."""

    observation_space = spaces.Box(0, 255, (64, 64, 9), np.uint8)
    action_space = spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def make_models(make: Any) -> dict[str, OffPolicyAlgorithm]:
    """Make our model with the paper's settings, SB3's DDPG with equal networks and settings, and with its own CNN."""
    shared: dict[str, Any] = {"buffer_size": 2_000, "batch_size": 16, "tau": 1e-3, "seed": 0, "device": "cpu"}

    def sb3(**policy_kwargs: Any) -> DDPG:
        env = make()
        sigma = 0.2 * np.ones(env.action_space.shape)
        noise = OrnsteinUhlenbeckActionNoise(0 * sigma, sigma, dt=1.0)
        kwargs = {**shared, "learning_rate": 1e-3, "learning_starts": 20, "action_noise": noise}
        return DDPG("CnnPolicy", env, policy_kwargs=policy_kwargs, **kwargs)

    return {
        "DDPGPaper": DDPGPaper("CnnPolicy", make(), **shared),
        "SB3, the same networks": sb3(features_extractor_class=PaperCNN, net_arch=[200, 200]),
        "SB3, NatureCNN": sb3(net_arch=[200, 200]),
    }


def gradient_steps(rounds: int) -> dict[str, Any]:
    """Measure gradient steps with a minibatch of 16; models take turns in each round."""
    models = make_models(lambda: Monitor(Noise()))
    for model in models.values():
        model.learn(60)  # fills the buffer and warms up
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.train(10, 16)
            times[name].append((time.perf_counter() - start) * 100)
    print("| gradient step, batch of 16 | parameters of an actor | ms: median (range) |\n|---|---|---|")
    for name, model in models.items():
        size = sum(param.numel() for param in model.policy.get_submodule("actor").parameters())
        print(f"| {name} | {size:,} | {spread(times[name])} |", flush=True)
    parts = shares(models["DDPGPaper"])
    print("\nShares of the time of DDPGPaper's gradient step:\n\n| | share |\n|---|---|")
    for group, share in parts.items():
        print(f"| {group} | {share:.0%} |")
    return {"milliseconds": times, "shares": parts}


def car_racing(rounds: int, chunk: int) -> dict[str, list[float]]:
    """Measure CarRacing-v3 end to end, in steps of the agent per second; models take turns in each round."""
    models = make_models(make_car)
    for model in models.values():
        model.learn(40)
    env = make_car()
    env.reset(seed=0)
    rates: dict[str, list[float]] = {name: [] for name in ("no agent", *models)}
    for _ in range(rounds):
        for name, measured in rates.items():
            start = time.perf_counter()
            if name in models:
                models[name].learn(chunk, reset_num_timesteps=False)
            else:
                for _ in range(chunk):
                    env.step(env.action_space.sample())
            measured.append(chunk / (time.perf_counter() - start))
    print("\n| CarRacing-v3, end to end | steps of the agent per second: median (range) |\n|---|---|")
    for name, measured in rates.items():
        print(f"| {name} | {spread(measured)} |")
    return rates


def versions() -> dict[str, str]:
    """Return the versions on which the numbers depend."""
    modules = (ddpg_ext, stable_baselines3, gym, th, np)
    return {"python": platform.python_version(), **{module.__name__: str(module.__version__) for module in modules}}


def spread(values: list[float]) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def shares(model: OffPolicyAlgorithm) -> dict[str, float]:
    """Return the share of each group of operations in the time of a gradient step, by torch's profiler."""
    with th.profiler.profile(activities=[th.profiler.ProfilerActivity.CPU]) as profile:
        model.train(20, 16)
    groups = {
        "convolutions, forward": ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward"),
        "convolutions, backward": ("aten::convolution_backward",),
        "linear layers": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
        "Adam": ("aten::_fused_adam_", "Optimizer.step#Adam.step"),
        "pixels: to float, divided, channels side by side": ("aten::copy_", "aten::div", "aten::index_select"),
    }
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    result = {group: sum(times.get(name, 0.0) for name in names) / total for group, names in groups.items()}
    return {**result, "the rest": 1 - sum(result.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunk", type=int, default=50, help="steps of CarRacing-v3 per model and round")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    th.set_num_threads(1)  # parallel runs with more threads than cores slow each other down
    results = {"machine": describe_processor(), "versions": versions(), "rounds": args.rounds, "chunk": args.chunk}
    results |= {"gradient_step": gradient_steps(args.rounds), "car_racing": car_racing(args.rounds, args.chunk)}
    print(f"\n{results['machine']}; {', '.join(map(' '.join, versions().items()))}")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
