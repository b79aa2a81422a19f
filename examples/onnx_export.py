"""
Export a trained actor to ONNX, and run it with onnxruntime, without torch, SB3 and this package.

    python examples/onnx_export.py                      # Pendulum-v1, 10,000 steps; needs the extra onnx

The graph takes raw observations, because their normalisation and the bounds of the actions are part of it.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext import DDPGPaper, export_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps to train for (10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the file (runs/)")
    args = parser.parse_args()

    env = VecNormalize(make_vec_env("Pendulum-v1", seed=args.seed))
    # These settings learn faster than the paper's
    model = DDPGPaper("MlpPolicy", env, learning_rate=1e-3, qf_weight_decay=0.0, tau=5e-3, seed=args.seed)
    model.learn(args.steps)
    file = args.runs / "onnx_export.onnx"
    export_onnx(model, file)

    session = onnxruntime.InferenceSession(file)
    space = model.observation_space
    observations = np.stack([space.sample() for _ in range(1_000)])
    (actions,) = session.run(["action"], {"observation": observations})
    expected, _ = model.predict(env.normalize_obs(observations), deterministic=True)
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")
    difference = np.abs(actions - expected).max() / model.action_space.high.max()
    print(f"Largest difference from predict over 1,000 observations: {difference:.1e} of the largest action")

    # Play an episode with only the file
    test_env = make_vec_env("Pendulum-v1", seed=args.seed + 1000)
    obs, total, over = test_env.reset(), 0.0, False
    while not over:
        (action,) = session.run(["action"], {"observation": obs})
        obs, rewards, dones, _ = test_env.step(action)
        total, over = total + float(rewards[0]), bool(dones[0])
    print(f"Return of an episode played by onnxruntime: {total:.1f}")


if __name__ == "__main__":
    main()
