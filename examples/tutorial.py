"""
The configuration of the tutorial "Physics control tasks with Deep Reinforcement Learning" (Paperspace blog), in full.

    python examples/tutorial.py                 # Pendulum-v1, 548,000 steps as in the tutorial, 15 minutes or more
    python examples/tutorial.py --steps 60000   # two minutes

Ornstein-Uhlenbeck noise that is never reset and fades out over 100,000 steps, episodes of 200 steps, no batch
normalisation, no weight decay, the end of an episode as a terminal state. Every 10 episodes it prints their mean return
and redraws live.png (return, both losses, episode length); whenever an episode's return beats all before, it keeps the
actor. TensorBoard reads the same: tensorboard --logdir runs/
"""

import argparse
from pathlib import Path

import numpy as np
from _runner import check_arguments, next_free_folder, one_line_errors, stopped_by_ctrl_c
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper, LinearDecay, LivePlotCallback, OrnsteinUhlenbeckNoise, ScheduledActionNoise

#: what the tutorial printed last: mean return of 10 training episodes, after 548,000 steps
TUTORIAL_RESULT = -170.6
#: of this script after 100,000 steps, when the noise was gone: seed 0, one thread of an AMD EPYC
OUR_RESULT = ("recorded run", "100,000", "-158.9", "-", "-148.4")


class UnendingNoise(OrnsteinUhlenbeckNoise):
    """Goes on over the ends of episodes, as the tutorial's does; the paper starts it anew in each."""

    def reset(self) -> None:
        if not hasattr(self, "noise_prev"):
            super().reset()


class EpisodeReport(BaseCallback):
    """
    Prints the mean return of every 10 training episodes, and keeps the actor of the best episode.

    :param file: where the best actor is saved
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.returns: list[float] = []
        self.best = -np.inf

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._on_episode(info["episode"]["r"])
        return True

    def _on_episode(self, episode_return: float) -> None:
        self.returns.append(episode_return)
        if episode_return > self.best:
            self.best = episode_return
            # Without the noise, which is a class of this script: any other can load the actor, too
            self.model.save(self.file, exclude=["action_noise"])
        if len(self.returns) % 10 == 0:
            print(f"step {self.num_timesteps:,}: mean return of 10 episodes {self.last_mean:.1f}, best {self.best:.1f}")

    @property
    def last_mean(self) -> float:
        return float(np.mean(self.returns[-10:])) if self.returns else float("nan")


def make_model(seed: int, folder: Path) -> DDPGPaper:
    """The tutorial's settings; what it does not set is as in the paper."""
    env = make_vec_env("Pendulum-v1", seed=seed, monitor_dir=str(folder))
    noise = UnendingNoise(np.zeros(env.action_space.shape or (1,)), sigma=0.2, theta=0.15, dt=1e-2)
    return DDPGPaper(
        "MlpPolicy",
        env,
        learning_rate=1e-4,
        qf_learning_rate=1e-3,
        qf_weight_decay=0.0,
        buffer_size=1_000_000,
        learning_starts=100,
        batch_size=64,
        tau=0.001,
        gamma=0.99,
        # epsilon: 1e-5 less with each step, never below 0
        action_noise=ScheduledActionNoise(noise, LinearDecay(100_000)),
        # gym's `done` did not tell the time limit from a terminal state
        replay_buffer_kwargs={"handle_timeout_termination": False},
        policy_kwargs={"net_arch": [400, 300], "batch_norm": False},
        tensorboard_log=str(folder / "tensorboard"),
        seed=seed,
    )


def report(steps: int, training_mean: float, last: list[float], best: list[float]) -> str:
    """This run beside the tutorial's and ours."""
    rows = [
        ("this run", f"{steps:,}", f"{training_mean:.1f}", f"{np.mean(last):.1f}", f"{np.mean(best):.1f}"),
        ("the tutorial", "548,000", f"{TUTORIAL_RESULT}", "-", "-"),
        OUR_RESULT,
    ]
    titles = ("", "steps", "last 10 episodes", "last actor", "best actor")
    lines = ["Mean return: of the last 10 training episodes; of episodes without noise, last actor and best actor"]
    return "\n".join(lines + ["".join(f"{cell:>18}" for cell in row) for row in (titles, *rows)])


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=548_000, help="environment steps to train for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-episodes", type=int, default=100, help="episodes of the last evaluation")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
    args = parser.parse_args()
    check_arguments(args)

    folder = next_free_folder(args.runs, "tutorial")
    model = make_model(args.seed, folder)
    episodes = EpisodeReport(folder / "best_actor.zip")
    live_plot = LivePlotCallback(folder / "live.png", every=10 * 200)
    print(f"Training for {args.steps:,} steps; {folder}/live.png shows how it goes")
    with stopped_by_ctrl_c(model, lambda: model.save(folder / "last_actor.zip", exclude=["action_noise"])) as stop:
        model.learn(args.steps, callback=[episodes, live_plot, stop], log_interval=10)

    def evaluate(actor: DDPGPaper) -> list[float]:
        env = make_vec_env("Pendulum-v1", n_envs=10, seed=args.seed + 1000)
        returns, _ = evaluate_policy(actor, env, args.eval_episodes, return_episode_rewards=True)
        assert isinstance(returns, list)  # for mypy
        return returns

    best = DDPGPaper.load(episodes.file) if episodes.returns else model
    text = report(model.num_timesteps, episodes.last_mean, evaluate(model), evaluate(best))
    (folder / "result.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
