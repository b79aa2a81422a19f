"""
Measure environment steps per second of ``learn()``, end to end: DDPGPaper, SB3's DDPG and, if installed, SBX's.

    python benchmarks/throughput.py                     # the comparison of the documentation, about 90 minutes
    python benchmarks/throughput.py --rounds 1 --steps 50 --envs Pendulum-v1 --parts compare   # a try

Each competitor runs in its own process. In each round the processes take turns with a chunk of steps each, so that
other load on the machine affects all equally. Ratios are computed within a round; their medians and ranges are printed.
"""

import argparse
import importlib.util
import json
import multiprocessing as mp
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from ddpg_ext.common.processor import describe_processor, processor

# Hyperparameters of all competitors; the networks are 400-300 ReLU
SHARED: dict[str, Any] = {"buffer_size": 200_000, "learning_starts": 300, "tau": 1e-3, "gamma": 0.99, "seed": 0}


def make_ours(env: Any, batch_size: int, **kwargs: Any) -> Any:
    """Make a DDPGPaper; its noise is the paper's."""
    from ddpg_ext import DDPGPaper

    return DDPGPaper("MlpPolicy", env, learning_rate=1e-4, batch_size=batch_size, device="cpu", **{**SHARED, **kwargs})


def make_sb3(env: Any, batch_size: int, **kwargs: Any) -> Any:
    """Make SB3's DDPG with Ornstein-Uhlenbeck noise."""
    from stable_baselines3 import DDPG

    return DDPG(
        "MlpPolicy", env, 1e-4, batch_size=batch_size, action_noise=ou_noise(env), device="cpu", **SHARED, **kwargs
    )


def make_sbx(env: Any, batch_size: int) -> Any:
    """Make SBX's DDPG, with the same noise as SB3's."""
    from sbx import DDPG

    kwargs = {"policy_kwargs": {"net_arch": [400, 300]}, "qf_learning_rate": 1e-3, "action_noise": ou_noise(env)}
    return DDPG("MlpPolicy", env, 1e-4, batch_size=batch_size, **SHARED, **kwargs)


def ou_noise(env: Any) -> Any:
    """Make SB3's noise for the actions of an environment."""
    from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

    return OrnsteinUhlenbeckActionNoise(np.zeros(env.action_space.shape), 0.2 * np.ones(env.action_space.shape), dt=1.0)


PLAIN: dict[str, Any] = {"policy_kwargs": {"batch_norm": False}, "qf_weight_decay": 0.0}
COMPETITORS: dict[str, Callable[..., Any]] = {
    "SB3": make_sb3,
    "SBX": make_sbx,
    "SBX, 1 core": make_sbx,
    "plain": lambda env, batch_size, **kwargs: make_ours(env, batch_size, **PLAIN, **kwargs),
    "paper": make_ours,
    "plain, bf16": lambda env, batch_size: make_ours(env, batch_size, matmul_precision="medium", **PLAIN),
    "plain, eager": lambda env, batch_size: make_ours(env, batch_size, executor="eager", **PLAIN),
}


def worker(
    pipe: Connection, competitor: str, env_id: str, n_envs: int, threads: int, batch_size: int, kwargs: Any
) -> None:
    """Build one competitor, warm up, then time a chunk of steps for each request."""
    from stable_baselines3.common.env_util import make_vec_env

    th.set_num_threads(threads)
    if competitor.endswith("1 core"):  # JAX uses all permitted cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    model = COMPETITORS[competitor](make_vec_env(env_id, n_envs=n_envs, seed=0), batch_size, **kwargs)
    model.learn(SHARED["learning_starts"] + 200)
    pipe.send(None)
    for steps in iter(pipe.recv, None):
        start = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        pipe.send(steps / (time.perf_counter() - start))


class Process:
    """Run a competitor in its own process."""

    def __init__(self, name: str, env_id: str, threads: int, batch_size: int = 64, n_envs: int = 1, **kwargs: Any):
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, name, env_id, n_envs, threads, batch_size, kwargs)
        self.process = context.Process(target=worker, args=arguments, daemon=True)
        self.process.start()
        self.pipe.recv()

    def time(self, steps: int) -> float:
        """Return the steps per second over this number of steps."""
        self.pipe.send(steps)
        return self.pipe.recv()

    def close(self) -> None:
        """End the process."""
        self.pipe.send(None)
        self.process.join()


def interleave(processes: dict[str, Process], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the steps per second of each process in each round."""
    rates: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            rates[name].append(process.time(steps))
    for process in processes.values():
        process.close()
    return rates


def ratios(rates: dict[str, list[float]], name: str, base: str) -> list[float]:
    """Return the ratio of two speeds, or of two times, in each round."""
    return [a / b for a, b in zip(rates[name], rates[base], strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


#: pairs of competitors whose speeds are divided
QUOTIENTS = [
    ("plain", "SB3"),
    ("plain", "SBX"),
    ("plain", "SBX, 1 core"),
    ("plain", "plain, eager"),
    ("paper", "SB3"),
    ("plain, bf16", "SB3"),
]


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the main table: all competitors on each environment, with each batch size and number of threads."""
    names = [name for name in COMPETITORS if not name.startswith("SBX") or importlib.util.find_spec("sbx")]
    if "amx_bf16" not in processor("flags"):
        names.remove("plain, bf16")
    pairs = [pair for pair in QUOTIENTS if set(pair) <= set(names)]
    results = []
    columns = ["environment", "batch", "threads", *names, *(f"{name} / {base}" for name, base in pairs)]
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for env_id in args.envs:
        for batch_size, threads in (map(int, setting.split(":")) for setting in args.settings):
            processes = {name: Process(name, env_id, threads, batch_size) for name in names}
            rates = interleave(processes, args.rounds, args.steps)
            quotients = {f"{name}/{base}": ratios(rates, name, base) for name, base in pairs}
            results.append(
                {"env": env_id, "batch": batch_size, "threads": threads, "rates": rates, "ratios": quotients}
            )
            cells = [f"{statistics.median(rates[name]):.0f}" for name in names]
            cells += [spread(values) for values in quotients.values()]
            print(f"| {env_id} | {batch_size} | {threads} | " + " | ".join(cells) + " |", flush=True)
    return results


def gradient_step_against_products(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the time of a gradient step with that of its matrix products, and by kind of batch norm, in turns."""
    import gymnasium as gym

    results = []
    statistics_of = {"no": PLAIN, "separate": {"policy_kwargs": {"batch_norm_statistics": "separate"}}, "joint": {}}
    print(
        "\n| environment | batch norm | gradient step (ms) | its matrix products (ms) | ratio |\n|---|---|---|---|---|"
    )
    th.set_num_threads(1)
    for env_id in args.envs:
        models = {name: make_ours(gym.make(env_id), 64, **kwargs) for name, kwargs in statistics_of.items()}
        for model in models.values():
            model.learn(SHARED["learning_starts"] + 200)
        batches = {name: model.replay_buffer.sample(64) for name, model in models.items()}
        env = models["no"].env
        products = matrix_products(64, env.observation_space.shape[0], env.action_space.shape[0])
        steps: dict[str, list[float]] = {name: [] for name in models}
        alone: dict[str, list[float]] = {name: [] for name in models}
        th.set_flush_denormal(True)
        for _ in range(max(args.steps // 20, 5)):
            for name, model in models.items():
                for _ in range(10):  # in a row, as in training, so that the weights stay in the caches
                    start = time.perf_counter()
                    model._executor.step(batches[name], 0.99, 1e-3)
                    middle = time.perf_counter()
                    products()
                    steps[name].append((middle - start) * 1e3)
                    alone[name].append((time.perf_counter() - middle) * 1e3)
        th.set_flush_denormal(False)
        for name, step in steps.items():
            quotient = statistics.median(step) / statistics.median(alone[name])
            results.append(
                {"env": env_id, "batch_norm": name, "step_ms": step, "products_ms": alone[name], "ratio": quotient}
            )
            print(f"| {env_id} | {name} | {spread(step, 3)} | {spread(alone[name], 3)} | {quotient:.2f} |", flush=True)
        joint_to_separate = spread(ratios(steps, "joint", "separate"))
        print(f"{env_id}: with joint statistics a step takes {joint_to_separate} times as long as with separate ones")
    return results


def matrix_products(batch: int, state: int, action: int) -> Callable[[], None]:
    """Return a function that computes all matrix products of one update of 400-300 networks in preallocated memory."""
    from ddpg_ext.common.matmul_kernels import is_large, is_narrow, large_product, memory_for_product

    rand = th.randn

    def product(rows: int, inner: int, columns: int) -> Callable[[], th.Tensor]:
        a, b, out = rand(rows, inner), rand(inner, columns), memory_for_product(rows, inner, columns)
        weight = b.t()
        if is_large(rows, weight) and not is_narrow(rows, inner, columns):
            return lambda: large_product(a, weight, None)
        return lambda: th.mm(a, b, out=out)

    def forward(sizes: list[tuple[int, int]]) -> list[Callable[[], th.Tensor]]:
        # Like the fast executor: with a small minibatch, compute large products as their transpose
        return [product(o, i, batch) if i >= 32 and 2 * batch <= o else product(batch, i, o) for i, o in sizes]

    def weight_gradients(sizes: list[tuple[int, int]]) -> list[Callable[[], th.Tensor]]:
        return [product(o, batch, i) for i, o in sizes]

    def input_gradients(sizes: list[tuple[int, int]]) -> list[Callable[[], th.Tensor]]:
        return [product(batch, o, i) for i, o in sizes]

    actor = [(state, 400), (400, 300), (300, action)]
    critic = [(state, 400), (400, 300), (action, 300), (300, 1)]
    calls = [
        *forward(actor + critic),  # targets
        *forward(critic),
        *weight_gradients(critic),
        *input_gradients([(400, 300), (300, 1)]),  # critic step
        *forward(actor + critic),
        *input_gradients([(300, 1), (action, 300)]),  # actor step, through the critic
        *weight_gradients(actor),
        *input_gradients(actor[1:]),  # actor step, in the actor
    ]

    def run() -> None:
        for call in calls:
            call()

    return run


def endurance(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Check whether training with the defaults slows down over 300,000 steps."""
    process = Process("paper", "Pendulum-v1", threads=1, buffer_size=1_000_000)
    rates = [process.time(args.endurance_steps // 30) for _ in range(30)]
    process.close()
    early, late = statistics.mean(rates[1:6]), statistics.mean(rates[25:])
    n = args.endurance_steps // 1000
    print(f"\nsteps/s over steps {n // 30}k-{n // 5}k: {early:.0f}; last sixth of {n}k: {late:.0f}; {late / early:.2f}")
    return [{"rates": rates, "ratio": late / early}]


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure throughput by number of environments, and the time of a gradient step by batch size and width."""
    import gymnasium as gym

    results: list[dict[str, Any]] = []
    print("\n| environments, gradient_steps=-1 | SB3 | plain | ratio |\n|---|---|---|---|")
    for n_envs in args.n_envs:
        names = ("SB3", "plain")
        processes = {name: Process(name, "Pendulum-v1", 1, 64, n_envs, gradient_steps=-1) for name in names}
        rates = interleave(processes, args.rounds, max(args.steps // n_envs, 1) * n_envs)
        results.append({"n_envs": n_envs, "rates": rates})
        cells = " | ".join(f"{statistics.median(rates[name]):.0f}" for name in names)
        print(f"| {n_envs} | {cells} | {spread(ratios(rates, 'plain', 'SB3'))} |", flush=True)
    print("\n| batch | widths | SB3 gradient step (ms) | plain (ms) | ratio |\n|---|---|---|---|---|")
    th.set_num_threads(1)
    th.set_flush_denormal(True)
    cases = [(batch, 400) for batch in (16, 64, 256, 1024)] + [(64, width) for width in (64, 256, 1024)]
    for batch, width in cases:
        arch = {"net_arch": [width, width]} if width != 400 else {}
        models = {
            "SB3": make_sb3(gym.make("Pendulum-v1"), batch, policy_kwargs=dict(arch)),  # a copy: SB3 adds keys
            "plain": make_ours(
                gym.make("Pendulum-v1"), batch, policy_kwargs={"batch_norm": False, **arch}, qf_weight_decay=0.0
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in models}
        for model in models.values():
            model.learn(SHARED["learning_starts"] + 5)
        n_steps = max(args.steps // 50, 1)
        for _ in range(args.rounds * 2):
            for name, model in models.items():
                start = time.perf_counter()
                model.train(gradient_steps=n_steps, batch_size=batch)
                times[name].append((time.perf_counter() - start) / n_steps * 1e3)
        results.append({"batch": batch, "width": width, "gradient_step_ms": times})
        medians = [statistics.median(times[name]) for name in models]
        widths = "400-300" if width == 400 else f"{width}-{width}"
        quotient = medians[0] / medians[1]
        print(f"| {batch} | {widths} | {medians[0]:.2f} | {medians[1]:.2f} | {quotient:.2f} |", flush=True)
    return results


def machine() -> dict[str, Any]:
    """Return the processor and the versions, on which the numbers depend."""
    import gymnasium
    import stable_baselines3

    cpu = describe_processor()
    packages = {
        "torch": th.__version__,
        "stable-baselines3": stable_baselines3.__version__,
        "gymnasium": gymnasium.__version__,
    }
    if importlib.util.find_spec("sbx"):
        import jax
        import sbx

        packages |= {"sbx": sbx.__version__, "jax": jax.__version__}
    return {"cpu": cpu, "cores": mp.cpu_count(), "python": platform.python_version(), **packages}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw bars of steps per second, one group per row of the main table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["compare"]
    names = list(rows[0]["rates"])
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [statistics.median(row["rates"][name]) for row in rows]
        label = name if name.startswith("SB") else f"DDPGPaper: {name}"
        axes.bar([x + i * width for x in range(len(rows))], heights, width, label=label)
    labels = [f"{row['env']}\nbatch {row['batch']}, {row['threads']} threads" for row in rows]
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(rows))], labels, fontsize=8)
    axes.set_ylabel("environment steps per second")
    figure.legend(loc="outside lower center", fontsize=8, ncols=len(names))
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_scaling(results: dict[str, Any], path: Path) -> None:
    """Draw throughput by number of environments, and the time of a gradient step by batch size and width."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["scaling"]
    panels: list[tuple[str, str, list[dict[str, Any]], str, str]] = [
        ("n_envs", "parallel environments", [r for r in rows if "n_envs" in r], "rates", "steps per second"),
        ("batch", "batch size", [r for r in rows if r.get("width") == 400], "gradient_step_ms", "gradient step (ms)"),
        ("width", "width of both layers", [r for r in rows if r.get("batch") == 64 and r["width"] != 400],
         "gradient_step_ms", "gradient step (ms)"),
    ]  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (x, x_label, cases, y, y_label) in zip(axes, panels, strict=True):
        for name, label in (("SB3", "SB3"), ("plain", "DDPGPaper: plain")):
            axis.plot([r[x] for r in cases], [statistics.median(r[y][name]) for r in cases], "o-", label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks([r[x] for r in cases], [str(r[x]) for r in cases])
        axis.set_ylim(bottom=0)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
    figure.suptitle("DDPGPaper and SB3's DDPG on Pendulum-v1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "compare": compare,
    "step": gradient_step_against_products,
    "scaling": scaling,
    "endurance": endurance,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["Pendulum-v1", "HalfCheetah-v5"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1000, help="environment steps per competitor and round")
    parser.add_argument(
        "--settings", nargs="+", default=["64:1", "64:2", "256:1", "256:2", "1024:2"], help="batch size : torch threads"
    )
    parser.add_argument("--n-envs", nargs="+", type=int, default=[1, 4, 16], help="environments of the part scaling")
    parser.add_argument("--endurance-steps", type=int, default=300_000)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/throughput"), help="folder for JSON and figure")
    args = parser.parse_args()

    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    results: dict[str, Any] = {"machine": machine()} | {part: PARTS[part](args) for part in args.parts}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "throughput.json").write_text(json.dumps(results, indent=1))
    if "compare" in results:
        draw(results, args.out / "throughput.png")
    if "scaling" in results:
        draw_scaling(results, args.out / "scaling.png")
    print(f"\nWritten to {args.out}/")


if __name__ == "__main__":
    main()
