"""
Figure 2 of the DDPG paper on two public descendants of its tasks: learning curves of four variants, over seeds.

    python benchmarks/figure2.py                            # all runs, one after the other, and the picture
    python benchmarks/figure2.py --envs Pendulum-v1 --variants both targets --seeds 0 1 --jobs 2
    python benchmarks/figure2.py --plot --out docs/_static  # the picture alone, from what is there

Results are kept in figure2.json in --out as they come, and runs that are in it are not repeated: an interrupted command
goes on when it is given again. The picture, figure2.png, is made from all that the file has.
"""

import argparse
import itertools
import json
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch as th
from learning import LearningCurve, draw, each_in_its_process, paper, versions
from pixels import REPEAT
from pixels import make_env as make_single_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext.common.files import atomic_file


class Task(NamedTuple):
    """What is done on one environment, unless the command line says otherwise. Steps are the simulation's."""

    steps: int
    pixel_steps: int
    #: steps between two evaluations
    eval_freq: int
    #: of each evaluation
    episodes: int
    #: steps to one of the agent
    repeat: int
    #: the same from pixels; the pictures of the paper's three steps are spread over them
    pixel_repeat: int


class Variant(NamedTuple):
    """One curve of the figure."""

    #: of DDPGPaper, beyond its defaults
    arguments: dict[str, Any]
    #: the paper's colour and words
    style: dict[str, Any]


class Run(NamedTuple):
    """One training run; its steps are the simulation's."""

    variant: str
    env: str
    seed: int
    steps: int
    eval_freq: int
    episodes: int
    repeat: int


TASKS = {
    "Pendulum-v1": Task(30_000, 30_000, eval_freq=1_500, episodes=10, repeat=1, pixel_repeat=3),
    # With an action every 10 ms the noise, correlated over some 7 of them, only shakes the cart
    "dm_control/cartpole-swingup-v0": Task(270_000, 90_000, eval_freq=9_000, episodes=5, repeat=9, pixel_repeat=9),
}

VARIANTS = {
    # With tau = 1 a target is, after each update, its network (parameters and running averages) to the last bit: y is
    # r + gamma Q(s', mu(s')) of the networks themselves, which is DPG without target networks
    "no targets": Variant({"tau": 1.0}, {"color": "silver", "label": "no target networks, batch norm (DPG)"}),
    "targets": Variant({"policy_kwargs": {"batch_norm": False}}, {"color": "dimgrey", "label": "target networks"}),
    "both": Variant({}, {"color": "tab:green", "label": "target networks, batch norm"}),
    "pixels": Variant({"policy": "CnnPolicy"}, {"color": "tab:blue", "label": "target networks, from pixels"}),
}


def make_env(run: Run, n_envs: int, seed: int) -> VecEnv:
    """
    :param run: for its environment and its variant
    :param n_envs: how many
    :param seed: of the first; the others' follow
    :return: vector observations, or for the variant "pixels" three pictures to a step
    """
    from_pixels = run.variant == "pixels"
    skip = run.repeat // REPEAT if from_pixels else run.repeat
    single = partial(make_single_env, run.env, from_pixels, dark=False, skip=skip)
    return make_vec_env(single, n_envs=n_envs, seed=seed)


def make_model(run: Run, env: VecEnv, agent_steps: int) -> OffPolicyAlgorithm:
    """
    :param run: for its variant and seed
    :param env: what to learn from
    :param agent_steps: how many transitions there will be; no run is long enough to fill the paper's buffer of 1e6
    :return: the model, with the paper's settings
    """
    return paper(env, run.seed, buffer_size=min(1_000_000, agent_steps), **VARIANTS[run.variant].arguments)


def train(run: Run) -> dict[str, Any]:
    """
    Train one model; called in a process of its own.

    :param run: what to train
    :return: the run's settings, the learning curve, the seconds that it took, and versions
    """
    th.set_num_threads(1)  # parallel runs with more threads than cores slow each other down
    began = time.perf_counter()
    agent_steps = run.steps // run.repeat
    model = make_model(run, make_env(run, 1, run.seed), agent_steps)
    eval_env = make_env(run, run.episodes, run.seed + 1000)
    curve = LearningCurve(eval_env, run.eval_freq // run.repeat, run.episodes)
    model.learn(agent_steps, callback=curve)
    points = [(steps * run.repeat, mean) for steps, mean in curve.points]
    physics = ["mujoco", "dm_control"] if run.env.startswith("dm_control/") else []
    used = {**versions(), **{name: metadata.version(name) for name in physics}}
    return {**run._asdict(), "curve": points, "seconds": round(time.perf_counter() - began), "versions": used}


def load(path: Path) -> list[dict[str, Any]]:
    """
    :param path: of the results
    :return: those that are there, in the order of the figure
    """
    results = json.loads(path.read_text()) if path.exists() else []
    order = list(VARIANTS)
    return sorted(results, key=lambda result: (result["env"], order.index(result["variant"]), result["seed"]))


def keep(result: dict[str, Any], path: Path) -> None:
    """
    Add one result. It replaces that of the same seed, and those of other seeds that were run with other settings.

    :param result: of one run
    :param path: of the results; another command may have added to it since
    """

    def stale(other: dict[str, Any]) -> bool:
        settings = set(Run._fields) - {"seed"}
        same_curve = all(other[name] == result[name] for name in ("env", "variant"))
        same_settings = all(other[name] == result[name] for name in settings)
        return same_curve and (other["seed"] == result["seed"] or not same_settings)

    results = [other for other in load(path) if not stale(other)]
    lines = ",\n".join(json.dumps(other) for other in [*results, result])
    with atomic_file(path) as file:
        file.write(f"[\n{lines}\n]\n".encode())


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """
    One panel for each task.

    :param results: of all runs
    :param path: of the picture
    """
    envs = list(dict.fromkeys(result["env"] for result in results))
    figure, panels = plt.subplots(1, len(envs), figsize=(5.5 * len(envs), 4.4), layout="constrained", squeeze=False)
    styles = {name: variant.style for name, variant in VARIANTS.items()}
    for axes, env in zip(panels[0], envs, strict=True):
        draw(axes, [result for result in results if result["env"] == env], styles)
        axes.set(title=env, xlim=(0, None))
    lines = {str(line.get_label()): line for axes in panels[0] for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(envs), 2))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def summary(results: list[dict[str, Any]]) -> str:
    """
    :param results: of all runs
    :return: a markdown table: per task and variant, the return at the end by seed, and its mean
    """
    rows = ["| task | variant | steps | return at the end, by seed | mean |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str, int], list[float]] = {}
    for result in results:
        last = result["curve"][-1][1]
        groups.setdefault((result["env"], result["variant"], result["steps"]), []).append(last)
    for (env, variant, steps), returns in groups.items():
        by_seed, mean = ", ".join(f"{value:.0f}" for value in returns), sum(returns) / len(returns)
        rows.append(f"| {env} | {VARIANTS[variant].style['label']} | {steps:,} | {by_seed} | {mean:.0f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(TASKS), help="ids; with continuous actions")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of the simulation, per run (default: by task)")
    parser.add_argument("--eval-freq", type=int, help="steps between two evaluations (default: by task)")
    parser.add_argument("--episodes", type=int, help="of each evaluation (default: by task)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/figure2"), help="where the results go")
    parser.add_argument("--plot", action="store_true", help="train nothing, draw what is there")
    args = parser.parse_args()

    runs = []
    for env in args.envs:
        task = TASKS.get(env, TASKS["Pendulum-v1"])
        for seed, variant in itertools.product(args.seeds, args.variants):
            from_pixels = variant == "pixels"
            steps = args.steps or (task.pixel_steps if from_pixels else task.steps)
            repeat = task.pixel_repeat if from_pixels else task.repeat
            settings = (steps, args.eval_freq or task.eval_freq, args.episodes or task.episodes, repeat)
            runs.append(Run(variant, env, seed, *settings))
    path = args.out / "figure2.json"
    finished = {Run(*(result[name] for name in Run._fields)) for result in load(path)}
    missing = [] if args.plot else [run for run in runs if run not in finished]
    print(f"to do: {len(missing)} of {len(runs)} runs", flush=True)
    for count, result in enumerate(each_in_its_process(train, missing, args.jobs), 1):
        keep(result, path)
        what = f"{result['env']}, {result['variant']}, seed {result['seed']}"
        print(f"{count}/{len(missing)} {what}: {result['curve'][-1][1]:.1f}, {result['seconds']} s", flush=True)

    results = load(path)
    if not results:
        sys.exit(f"{path} has no results to draw")
    plot(results, args.out / "figure2.png")
    print(f"\n{summary(results)}\n")


if __name__ == "__main__":
    main()
