"""
Does prioritised replay learn better than uniform? DDPGPaper with both, everything else the same, over several seeds.

    python benchmarks/prioritized_learning.py                                   # the table of the guide, about an hour
    python benchmarks/prioritized_learning.py --envs Pendulum-v1 --seeds 1 --steps 300 --episodes 1    # to see it run

Results are kept in the JSON file as they come, and runs that are in it are not repeated.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper, LinearDecay
from ddpg_ext.buffers import PrioritizedReplayBuffer

STEPS = {"Pendulum-v1": 10_000, "MountainCarContinuous-v0": 30_000}
REPLAYS = ("uniform", "prioritised")


def run(env_id: str, replay: str, seed: int, steps: int, episodes: int) -> list[float]:
    """
    Train once.

    :return: the mean return of ``episodes`` episodes without noise, after each fifth of the steps
    """
    kwargs: dict[str, Any] = {}
    if replay == "prioritised":
        kwargs["replay_buffer_class"] = PrioritizedReplayBuffer
        kwargs["replay_buffer_kwargs"] = {"alpha": 0.6, "beta": LinearDecay(steps, start=0.4, end=1.0)}
    model = DDPGPaper("MlpPolicy", make_vec_env(env_id, seed=seed), seed=seed, **kwargs)
    eval_env = make_vec_env(env_id, seed=seed + 1000)
    returns = []
    for _ in range(5):
        model.learn(steps // 5, reset_num_timesteps=False)
        by_episode, _ = evaluate_policy(model, eval_env, n_eval_episodes=episodes, return_episode_rewards=True)
        returns.append(float(np.mean(by_episode)))
    return returns


def as_table(results: dict[str, list[float]], envs: list[str], seeds: int, steps: dict[str, int]) -> str:
    lines = [
        "| environment | replay | steps | final return by seed | mean of seeds | mean over training |",
        "|---|---|---|---|---|---|",
    ]
    for env_id in envs:
        for replay in REPLAYS:
            runs = [results[key(env_id, replay, seed, steps[env_id])] for seed in range(seeds)]
            by_seed = ", ".join(f"{returns[-1]:.0f}" for returns in runs)
            final = statistics.mean(returns[-1] for returns in runs)
            overall = statistics.mean(statistics.mean(returns) for returns in runs)
            lines.append(f"| {env_id} | {replay} | {steps[env_id]:,} | {by_seed} | {final:.1f} | {overall:.1f} |")
    return "\n".join(lines)


def key(env_id: str, replay: str, seed: int, steps: int) -> str:
    return f"{env_id} {replay} seed {seed} steps {steps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--steps", type=int, help="environment steps; by default, by environment")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of each evaluation")
    parser.add_argument("--json", type=Path, default=Path("prioritized_learning.json"), help="file for the results")
    args = parser.parse_args()
    th.set_num_threads(1)

    results: dict[str, list[float]] = json.loads(args.json.read_text()) if args.json.exists() else {}
    steps = {env_id: args.steps or STEPS.get(env_id, 20_000) for env_id in args.envs}
    for env_id in args.envs:
        for seed in range(args.seeds):
            for replay in REPLAYS:
                name = key(env_id, replay, seed, steps[env_id])
                if name not in results:
                    results[name] = run(env_id, replay, seed, steps[env_id], args.episodes)
                    args.json.write_text(json.dumps(results, indent=2) + "\n")
                print(f"{name}: {', '.join(f'{mean:.0f}' for mean in results[name])}", flush=True)
    print("\n" + as_table(results, args.envs, args.seeds, steps))


if __name__ == "__main__":
    main()
