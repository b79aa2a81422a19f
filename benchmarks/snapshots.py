"""
Measure time and size of a snapshot with a full replay buffer.

    python benchmarks/snapshots.py                   # 1e6 transitions of HalfCheetah-v5 (extra `mujoco`)
    python benchmarks/snapshots.py --buffer prioritized
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from ddpg_ext import DDPGPaper
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer
from ddpg_ext.checkpoints import training_state
from ddpg_ext.checkpoints.snapshots import write_snapshot
from ddpg_ext.serialization import replay_buffers

BUFFERS = {"packed": PackedReplayBuffer, "prioritized": PrioritizedReplayBuffer, "sb3": ReplayBuffer}


def fill(model: DDPGPaper, transitions: int) -> None:
    """Fill the replay buffer with random numbers, because zeros would not test a disk."""
    assert isinstance(model.env, VecEnv)
    rng = np.random.default_rng(0)
    buffer = model.replay_buffer
    assert buffer is not None
    obs = rng.normal(size=(1000, 1, *model.observation_space.shape))  # type: ignore[misc]
    action = rng.uniform(-1, 1, size=(1, *model.action_space.shape)).astype(np.float32)
    for i in range(transitions):
        buffer.add(obs[i % 1000], obs[(i + 1) % 1000], action, np.ones(1), np.zeros(1), [{}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="folder on the disk to measure (default: temporary)")
    parser.add_argument("--buffer", choices=BUFFERS, default="packed")
    args = parser.parse_args()
    th.set_num_threads(1)

    buffer_class = BUFFERS[args.buffer]
    model = DDPGPaper("MlpPolicy", args.env, buffer_size=args.transitions, seed=0, replay_buffer_class=buffer_class)
    model.set_logger(configure(None, []))
    assert model.env is not None
    recorder = training_state.install_recorder(model.env)
    assert recorder is not None
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    fill(model, args.transitions)
    raw = sum(array.nbytes for array in replay_buffers.get_state(model.replay_buffer)[1].values())
    print(f"{args.env}, {args.transitions:,} transitions, {type(model.replay_buffer).__name__}: {raw / 1e6:.0f} MB raw")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "snapshot_000001000000.zip"
        for _ in range(3):
            start = time.perf_counter()
            write_snapshot(file, model, {"kind": "repeated", "before": recorder.before})
            print(f"written in {time.perf_counter() - start:.2f} s, {file.stat().st_size / raw:.3f} x the raw data")
        start = time.perf_counter()
        DDPGPaper.resume(file, model.env)
        print(f"read back in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
