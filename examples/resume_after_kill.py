"""
Train with snapshots: stop the program at any time, start it again, and training resumes bit for bit.

    python examples/resume_after_kill.py                     # kill it (Ctrl-C, kill -9, power off), and run it again
    python examples/resume_after_kill.py --env HalfCheetah-v5 --steps 300000
"""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext import CheckpointNotFoundError, DDPGPaper, SnapshotCallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="environment id, with continuous actions")
    parser.add_argument("--steps", type=int, default=20_000, help="total number of environment steps")
    parser.add_argument("--every", type=int, default=2_000, help="environment steps between two snapshots")
    parser.add_argument("--folder", type=Path, default=Path("runs/resume_after_kill"), help="folder for snapshots")
    args = parser.parse_args()

    env = VecNormalize(make_vec_env(args.env))
    try:
        model = DDPGPaper.resume(args.folder, env)
        print(f"Resuming after {model.num_timesteps:,} steps")
    except CheckpointNotFoundError:
        model = DDPGPaper("MlpPolicy", env, seed=0)
        print("Starting from the beginning")
    snapshots = SnapshotCallback(args.folder, every=args.every, verbose=1)
    model.learn(max(args.steps - model.num_timesteps, 0), callback=snapshots, reset_num_timesteps=False)
    model.save(args.folder / "model.zip")
    weights = sum(tensor.double().abs().sum().item() for tensor in model.policy.state_dict().values())
    print(f"Done. Sum of all weights, for comparison with an uninterrupted run: {weights!r}")


if __name__ == "__main__":
    main()
