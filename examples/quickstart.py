"""
Train DDPG with the paper's settings, watch it, and keep everything in a run folder laid out like the RL Zoo's.

    python examples/quickstart.py                       # Pendulum-v1, 20,000 steps, one to four minutes
    python examples/quickstart.py HalfCheetah-v5 --steps 300000
"""

import argparse
import json
import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
import yaml
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper, record_episode

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if sys.platform == "linux" and "DISPLAY" not in os.environ:
    # Rendering works without a window, too
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def next_free_folder(root: Path, env_id: str) -> Path:
    """Make and return root/<env_id>_<N>, N one above the highest there is."""
    name = env_id.replace("/", "-")
    numbers = [int(p.name.rpartition("_")[2]) for p in root.glob(f"{name}_*") if p.name.rpartition("_")[2].isdigit()]
    folder = root / f"{name}_{max(numbers, default=0) + 1}"
    folder.mkdir(parents=True)
    return folder


def write_settings(folder: Path, env_id: str, args: argparse.Namespace, model: DDPGPaper) -> None:
    """The Zoo's two files: what was asked for, and the hyperparameters."""
    settings = folder / env_id.replace("/", "-")
    settings.mkdir()
    (settings / "args.yml").write_text(yaml.safe_dump({"algo": "ddpg_paper", "env": env_id, **vars(args)}))
    hyperparameters = {
        "policy": "MlpPolicy",
        "n_timesteps": args.steps,
        "learning_rate": model.learning_rate,
        "qf_learning_rate": model.qf_learning_rate,
        "qf_weight_decay": model.qf_weight_decay,
        "buffer_size": model.buffer_size,
        "learning_starts": model.learning_starts,
        "batch_size": model.batch_size,
        "tau": model.tau,
        "gamma": model.gamma,
        "train_freq": model.train_freq.frequency,  # type: ignore[union-attr]
        "gradient_steps": model.gradient_steps,
        "action_noise": "ornstein-uhlenbeck",
        "n_steps": model.n_steps,
    }
    (settings / "config.yml").write_text(yaml.safe_dump(hyperparameters, sort_keys=False))


def plot_learning_curve(folder: Path, env_id: str) -> None:
    """Mean and deviation of the evaluations' returns over training."""
    evaluations = np.load(folder / "evaluations.npz")
    returns = evaluations["results"]
    steps, mean, std = evaluations["timesteps"], returns.mean(axis=1), returns.std(axis=1)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, mean, label="mean return, evaluated without noise")
    axes.fill_between(steps, mean - std, mean + std, alpha=0.2, label=f"deviation over {returns.shape[1]} episodes")
    axes.set(xlabel="environment steps", ylabel="return", title=f"DDPG with the paper's settings on {env_id}")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(folder / "learning_curve.png", dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps to train for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-episodes", type=int, default=100, help="episodes of the last evaluation")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
    args = parser.parse_args()

    # Raises for what DDPG cannot train on, before there is a folder for it
    DDPGPaper("MlpPolicy", args.env, buffer_size=1)
    folder = next_free_folder(args.runs, args.env)
    env = make_vec_env(args.env, seed=args.seed, monitor_dir=str(folder))
    eval_env = make_vec_env(args.env, n_envs=10, seed=args.seed + 1000)
    model = DDPGPaper("MlpPolicy", env, seed=args.seed)
    args.runs = str(args.runs)
    write_settings(folder, args.env, args, model)
    evaluation = EvalCallback(
        eval_env,
        n_eval_episodes=10,
        eval_freq=max(args.steps // 20, 1),
        log_path=str(folder),
        best_model_save_path=str(folder),
        verbose=0,
    )
    print(f"Training on {args.env} for {args.steps:,} steps; everything lands in {folder}/")
    try:
        model.learn(args.steps, callback=evaluation, progress_bar=True)
    except KeyboardInterrupt:
        print(f"Stopped after {model.num_timesteps:,} steps; the agent is kept as it is")
    model.save(folder / f"{args.env.replace('/', '-')}.zip")

    returns, _ = evaluate_policy(model, eval_env, args.eval_episodes, return_episode_rewards=True)
    mean, std = float(np.mean(returns)), float(np.std(returns))
    result = {"mean_return": mean, "std_return": std, "episodes": args.eval_episodes, "seed": args.seed}
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"Mean return over {args.eval_episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")
    if (folder / "evaluations.npz").exists():
        plot_learning_curve(folder, args.env)
        print(f"{folder}/learning_curve.png shows how it got there")
    try:
        # Its first 200 steps, where it is longer
        record_episode(model, args.env, folder / "agent.gif", max_steps=200)
        print(f"{folder}/agent.gif shows the agent")
    except Exception as error:  # whatever a renderer without a display may raise
        print(f"No animation, since {args.env} cannot be rendered here: {error}")


if __name__ == "__main__":
    main()
