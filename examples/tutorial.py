"""
Train with the configuration of the tutorial "Physics control tasks with Deep Reinforcement Learning" (Paperspace blog).

    python examples/tutorial.py                 # Pendulum-v1, 548,000 steps as in the tutorial, 15 minutes or more
    python examples/tutorial.py --steps 60000   # two to four minutes
    python examples/tutorial.py --env Hopper-v5 --batch-size 128 --decay 0

It has Ornstein-Uhlenbeck noise that is never reset and decays over 100,000 steps, neither batch normalisation nor
weight decay, and treats the end of an episode as a terminal state. After every 10 episodes it prints their mean return,
and after every 2,000 steps it draws live.png. The actor of the best training episode is kept. Ctrl-C ends training
after the current step. For TensorBoard: tensorboard --logdir runs/tutorial
"""

import argparse
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper, LinearDecay, LivePlotCallback, OrnsteinUhlenbeckNoise, ScheduledActionNoise
from ddpg_ext.callbacks import StopOnCtrlC


class UnendingNoise(OrnsteinUhlenbeckNoise):
    """Continue the noise across episodes, as in the tutorial; the paper resets it."""

    def reset(self) -> None:
        if not hasattr(self, "noise_prev"):
            super().reset()


class BestEpisode(BaseCallback):
    """Print the mean return of every 10 training episodes, and save the actor of the best episode."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.append(info["episode"]["r"])
                if self.returns[-1] > max(self.returns[:-1], default=-np.inf):
                    # Exclude the noise, so that the file can be loaded without the class of this script
                    self.model.save(self.file, exclude=["action_noise"])
                if len(self.returns) % 10 == 0:
                    mean = f"mean return of 10 episodes {np.mean(self.returns[-10:]):.1f}"
                    print(f"step {self.num_timesteps:,}: {mean}, best {max(self.returns):.1f}")
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument("--steps", type=int, default=548_000, help="environment steps to train for (548,000)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--decay", type=int, default=100_000, help="steps until the noise is 0; 0: no decay (100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-episodes", type=int, default=100, help="episodes of the last evaluation (100)")
    parser.add_argument("--folder", type=Path, default=Path("runs/tutorial"), help="folder for all files")
    args = parser.parse_args()

    env = make_vec_env(args.env, seed=args.seed, monitor_dir=str(args.folder))
    noise = UnendingNoise(np.zeros(env.action_space.shape or (1,)), sigma=0.2, theta=0.15, dt=1e-2)
    model = DDPGPaper(  # the other settings are the paper's, as in the tutorial
        "MlpPolicy",
        env,
        qf_weight_decay=0.0,
        learning_starts=100,
        batch_size=args.batch_size,
        action_noise=ScheduledActionNoise(noise, LinearDecay(args.decay)) if args.decay else noise,
        # gym's `done` did not distinguish the time limit from a terminal state
        replay_buffer_kwargs={"handle_timeout_termination": False},
        policy_kwargs={"net_arch": [400, 300], "batch_norm": False},
        tensorboard_log=str(args.folder / "tensorboard"),
        seed=args.seed,
    )
    episodes = BestEpisode(args.folder / "best_model.zip")
    live_plot = LivePlotCallback(args.folder / "live.png", every=10 * 200)
    print(f"Training for {args.steps:,} steps; {args.folder}/live.png shows the progress")
    with StopOnCtrlC() as stop:
        try:
            model.learn(args.steps, callback=[episodes, live_plot, stop], log_interval=10)
        finally:
            stop.end_training()
            model.save(args.folder / f"{args.env}.zip", exclude=["action_noise"])

    if episodes.returns:
        print(f"Mean return of the last 10 training episodes: {np.mean(episodes.returns[-10:]):.1f}")
    print("The result of the tutorial, on Pendulum-v1 after 548,000 steps: -170.6")
    print(f"Evaluating both actors over {args.eval_episodes} episodes")
    eval_env = make_vec_env(args.env, n_envs=10, seed=args.seed + 1000)
    for name, actor in {
        "last": model,
        "best": DDPGPaper.load(episodes.file, action_noise=None) if episodes.returns else model,
    }.items():
        mean, std = evaluate_policy(actor, eval_env, args.eval_episodes)
        print(f"Mean return of the {name} actor, {args.eval_episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")
    print(f"`python -m ddpg_ext enjoy --folder {args.folder} --env {args.env}` shows the agent (extra `zoo`)")


if __name__ == "__main__":
    main()
