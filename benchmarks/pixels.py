"""
Measure how DDPGPaper learns from pixels, and how fast it is.

    python benchmarks/pixels.py learn --env Pendulum-v1 --variants tuned low-dimensional --seeds 0 1 2
    python benchmarks/pixels.py plot --env Pendulum-v1 --out runs/pixels
    python benchmarks/pixels.py speed

`learn` writes one JSON file per run to --out, again after each episode, so an interrupted run has its curve. Complete
runs are not repeated. Steps are those of the agent: from pixels, each is three steps of the simulation. `plot` draws
the curves of all files of an environment, and the agent's observations. `speed` measures the gradient step, and
CarRacing-v3 end to end, against SB3's DDPG.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Literal

# Set before MuJoCo and pygame are imported, to render without a display
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium as gym
import matplotlib
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import ddpg_ext
from ddpg_ext import DDPGPaper
from ddpg_ext.common.cnn import PaperCNN
from ddpg_ext.common.files import atomic_file
from ddpg_ext.envs import PixelActionRepeat

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REPEAT = 3
PENDULUM, CAR, CARTPOLE = "Pendulum-v1", "CarRacing-v3", "dm_control/cartpole-balance-v0"

#: policy of each variant, and its differences from the defaults, which are the paper's. A million images take 37 GB
VARIANTS: dict[str, tuple[Literal["MlpPolicy", "CnnPolicy"], dict[str, Any]]] = {
    "paper": ("CnnPolicy", {"buffer_size": 50_000}),
    "tuned": (
        "CnnPolicy",
        {
            "buffer_size": 50_000,
            "learning_starts": 1_000,
            "uniform_warmup": True,
            "qf_weight_decay": 0.0,
            "tau": 1e-2,
            "gamma": 0.97,
            "policy_kwargs": {"batch_norm": True},
        },
    ),
    "low-dimensional": ("MlpPolicy", {}),
}
#: additional settings of the variant "tuned", by environment
TUNED_FOR: dict[str, dict[str, Any]] = {PENDULUM: {"learning_rate": 1e-3, "batch_size": 32}}
#: steps of the agent, by environment
STEPS = {PENDULUM: 10_000, CAR: 100_000, CARTPOLE: 20_000}
#: dm_control's camera. On a CPU, shadows and reflections would take most of the time
CAMERA = {"height": 64, "width": 64, "camera_id": 0, "render_flag_overrides": {"shadow": False, "reflection": False}}


def make_env(env_id: str, from_pixels: bool, dark: bool = True) -> gym.Env:
    """
    Make an environment with a ``Monitor``.

    :param env_id: an environment of ``STEPS``, or another of dm_control
    :param from_pixels: observe frames, as in the examples
    :param dark: invert the frames of Pendulum-v1, for a black background
    """
    kwargs: dict[str, Any] = {"render_mode": "rgb_array"} if from_pixels and env_id != CAR else {}
    is_dm_control = env_id.startswith("dm_control/")
    if is_dm_control:
        import shimmy

        gym.register_envs(shimmy)
        kwargs["render_kwargs"] = CAMERA
    env = gym.make(env_id, **kwargs)
    if env_id == CAR:
        pedals = spaces.Box(-1, 1, (2,), np.float32)
        env = gym.wrappers.TransformAction(env, lambda a: np.array([a[0], max(a[1], 0), max(-a[1], 0)]), pedals)
    if not from_pixels:
        return Monitor(gym.wrappers.FlattenObservation(env) if is_dm_control else env)
    if env_id == PENDULUM:
        env.unwrapped.screen_dim = 128  # type: ignore[attr-defined] # 500x500 pixels take ten times as long to draw
    env = PixelActionRepeat(env, REPEAT)
    if env_id == PENDULUM and dark:
        env = gym.wrappers.TransformObservation(env, lambda frame: 255 - frame, env.observation_space)
    return Monitor(env)


class Curve(BaseCallback):
    """
    Evaluate without noise at intervals, and write the result so far to a file after each episode.

    :param env: environment of the evaluations
    :param eval_freq: steps between two evaluations
    :param episodes: episodes of an evaluation
    :param result: result of the run so far
    :param path: file for the result
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
        """Replace the file atomically."""
        self.result["seconds"] = round(time.perf_counter() - self.start)
        with atomic_file(self.path) as file:
            file.write(json.dumps(self.result).encode() + b"\n")


def learn(args: argparse.Namespace) -> None:
    """Train all runs that are not complete, one after the other."""
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for variant in args.variants:
            name = f"{args.env.split('/')[-1]}_{variant}_{seed}"
            path = args.out / f"{name}.json"
            if not path.exists() or json.loads(path.read_text())["returns"] is None:
                train(args, variant, seed, path)


def train(args: argparse.Namespace, variant: str, seed: int, path: Path) -> None:
    """Train one run, and play the episodes of its final evaluation."""
    policy, kwargs = VARIANTS[variant]
    if variant == "tuned":
        kwargs = {**kwargs, **TUNED_FOR.get(args.env, {})}
    from_pixels = policy == "CnnPolicy"
    steps = args.steps or STEPS[args.env]
    if not from_pixels:
        steps *= REPEAT
    envs = [make_env(args.env, from_pixels, dark=variant != "paper") for _ in range(3)]
    for env, offset in zip(envs[1:], (1000, 2000), strict=True):
        env.reset(seed=seed + offset)  # the model seeds the first environment
    if args.env == PENDULUM and variant == "tuned":
        envs[0] = gym.wrappers.TransformReward(envs[0], lambda reward: 0.1 * float(reward))
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


# ---------------------------------------------------------------------- plot


def plot(args: argparse.Namespace) -> None:
    """Draw the curves of all files of an environment and the agent's observation; print a table of final returns."""
    stem = args.env.split("/")[-1]
    results = [json.loads(path.read_text()) for path in sorted(args.out.glob(f"{stem}_*.json"))]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for variant in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == variant]
        color = None
        for run in runs:
            points = np.array(run["curve"] or smoothed(run["training"]))
            name = variant if run["repeat"] == 1 else f"from pixels, {variant}"
            label = None if color else f"{name}, {len(runs)} seed{'s' if len(runs) > 1 else ''}"
            (line,) = axes.plot(points[:, 0] * run["repeat"], points[:, 1], color=color, alpha=0.8, label=label)
            color = line.get_color()
    axes.set(xlabel="steps of the simulation", ylabel="return without noise", title=f"DDPGPaper on {args.env}")
    figure.legend(loc="outside lower center", ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(args.out / f"pixels_{stem}.png", dpi=100)
    plt.close(figure)
    draw_observation(args.env, args.out / f"frames_{stem}.png")
    print("| variant | seed | steps of the agent | seconds | return at the end |\n|---|---|---|---|---|")
    for run in results:
        steps = (run["curve"] or run["training"])[-1][0]
        returns = run["returns"] or [value for _, value in run["curve"][-1:]]
        at_end = f"{np.mean(returns):.1f} +/- {np.std(returns):.1f}" if returns else ""
        print(f"| {run['variant']} | {run['seed']} | {steps:,} | {run['seconds']} | {at_end} |")


def smoothed(points: list[tuple[int, float]], window: int = 10) -> list[tuple[int, float]]:
    """Return means over the last training episodes, for a run without evaluations."""
    returns = [value for _, value in points]
    return [(step, float(np.mean(returns[max(0, i - window + 1) : i + 1]))) for i, (step, _) in enumerate(points)]


def draw_observation(env_id: str, path: Path, n_steps: int = 25) -> None:
    """Draw the three frames of one observation, side by side and four times as large."""
    env = make_env(env_id, from_pixels=True)
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    action = np.array([0.0, 1.0], np.float32) if env_id == CAR else env.action_space.sample()
    for _ in range(n_steps):
        observation, *_ = env.step(action)
    frames = [observation[..., 3 * i : 3 * i + 3].repeat(4, axis=0).repeat(4, axis=1) for i in range(REPEAT)]
    gap = np.full((frames[0].shape[0], 8, 3), 255, np.uint8)
    plt.imsave(path, np.concatenate([frames[0], gap, frames[1], gap, frames[2]], axis=1))
    env.close()


# --------------------------------------------------------------------- speed


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


def speed(args: argparse.Namespace) -> None:
    """Measure gradient steps with one minibatch size, and CarRacing-v3 end to end; models take turns in each round."""
    models = make_models(lambda: Monitor(Noise()))
    for model in models.values():
        model.learn(60)  # fills the buffer and warms up
    print("| gradient step, batch of 16 | parameters of an actor | ms: median (range) | CPU ms |\n|---|---|---|---|")
    wall: dict[str, list[float]] = {name: [] for name in models}
    cpu: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            model.train(10, 16)
            wall[name].append((time.perf_counter() - start) * 100)
            cpu[name].append((time.process_time() - cpu_start) * 100)
    for name, model in models.items():
        actor = model.policy.get_submodule("actor")
        size = sum(param.numel() for param in actor.parameters())
        print(f"| {name} | {size:,} | {spread(wall[name])} | {spread(cpu[name])} |", flush=True)
    print("\nWhere the time of DDPGPaper's gradient step goes:\n\n| | share |\n|---|---|")
    for group, share in shares(models["DDPGPaper"]).items():
        print(f"| {group} | {share:.0%} |")

    models = make_models(lambda: make_env(CAR, from_pixels=True))
    rates: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.learn(40)
    for _ in range(args.rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.learn(args.chunk, reset_num_timesteps=False)
            rates[name].append(args.chunk / (time.perf_counter() - start))
    env = make_env(CAR, from_pixels=True)
    env.reset(seed=0)
    start = time.perf_counter()
    for _ in range(args.chunk):
        env.step(env.action_space.sample())
    alone = args.chunk / (time.perf_counter() - start)
    print(f"\n| CarRacing-v3, end to end | steps of the agent per second |\n|---|---|\n| no agent | {alone:.1f} |")
    for name in models:
        print(f"| {name} | {spread(rates[name])} |")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))


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
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("learn", help="train, and write learning curves")
    command.set_defaults(run=learn)
    command.add_argument("--env", choices=STEPS, default=PENDULUM)
    command.add_argument("--variants", nargs="+", choices=VARIANTS, default=["tuned"])
    command.add_argument("--seeds", type=int, nargs="+", default=[0])
    command.add_argument("--steps", type=int, help="steps of the agent from pixels, a third of the simulation's steps")
    command.add_argument("--evaluations", type=int, default=16, help="number of evaluations while training")
    command.add_argument("--eval-episodes", type=int, default=4, help="episodes of each evaluation")
    command.add_argument("--episodes", type=int, default=20, help="episodes of the evaluation at the end")
    command.add_argument("--out", type=Path, default=Path("runs/pixels"), help="folder for the results")

    command = commands.add_parser("plot", help="draw the curves of an environment, and the agent's observation")
    command.set_defaults(run=plot)
    command.add_argument("--env", choices=STEPS, default=PENDULUM)
    command.add_argument("--out", type=Path, default=Path("runs/pixels"), help="folder of results and figures")

    command = commands.add_parser("speed", help="measure gradient steps and CarRacing-v3 against SB3")
    command.set_defaults(run=speed)
    command.add_argument("--rounds", type=int, default=15)
    command.add_argument("--chunk", type=int, default=50, help="steps of CarRacing-v3 in each round")

    args = parser.parse_args()
    th.set_num_threads(1)  # parallel runs with more threads than cores slow each other down
    args.run(args)


if __name__ == "__main__":
    main()
