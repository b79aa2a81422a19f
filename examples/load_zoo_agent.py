"""
Open an agent of the RL Zoo or a run of examples/train.py, evaluate it, and continue training.

    python examples/load_zoo_agent.py rl-trained-agents/ddpg/Pendulum-v1_1
    python examples/load_zoo_agent.py runs/Pendulum-v1_1 --checkpoint last --train 5000

No code in the agent's files is executed.
"""

import argparse

from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from ddpg_ext import CheckpointError, load_zoo_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, a folder of runs, or a zip file")
    parser.add_argument("--checkpoint", help="'best', 'last' or a number of steps")
    parser.add_argument("--env", help="environment id to use instead of that of the run")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--train", type=int, default=0, help="environment steps of further training")
    args = parser.parse_args()

    checkpoint = int(args.checkpoint) if args.checkpoint and args.checkpoint.isdigit() else args.checkpoint
    try:
        model, env = load_zoo_run(args.run, checkpoint=checkpoint, env=args.env, seed=0)
    except CheckpointError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    print(f"{args.run}: trained for {model.num_timesteps:,} steps, {model.policy.net_arch} units")
    mean, std = evaluate_policy(model, env, args.episodes)
    print(f"Mean return over {args.episodes} episodes without noise: {mean:.1f} +/- {std:.1f}")
    if args.train:
        normalize = unwrap_vec_normalize(env)
        if normalize is not None:  # load_zoo_run has frozen it
            normalize.training = normalize.norm_reward = True
        model.learn(args.train, reset_num_timesteps=False)
        if normalize is not None:  # evaluate as before
            normalize.training = normalize.norm_reward = False
        mean, std = evaluate_policy(model, env, args.episodes)
        print(f"After {args.train:,} more steps: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
