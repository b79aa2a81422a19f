"""
Compare replay buffers with SB3's, in turns in one process: time to add and to sample, memory, disk.

    python benchmarks/buffers.py                          # about two minutes, 4 GB of disk
    python benchmarks/buffers.py --pixels 1000000         # all pixel transitions: 37 GB of disk
    python benchmarks/buffers.py --quick --json out.json  # a short try
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer

# HalfCheetah-v5's spaces and episode length; the paper's pixels
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (17,), np.float64)
ACTIONS = spaces.Box(-1, 1, (6,), np.float32)
PIXELS = spaces.Box(0, 255, (64, 64, 9), np.uint8)
EPISODE_STEPS = 1000
BATCH_SIZE = 64
GB = 1e9


def steps(space: spaces.Box, n: int) -> Iterator[tuple[Any, ...]]:
    """Yield random transitions of one environment, without end, in the form of SB3's training loop for ``add``."""
    rng = np.random.default_rng(0)
    observations = [space_sample(space, rng) for _ in range(n)]
    actions = rng.uniform(-1, 1, (n, 1, 6)).astype(np.float32)
    rewards = rng.normal(size=(n, 1)).astype(np.float32)
    for t in cycle(range(n - 1)):
        done = np.array([t % EPISODE_STEPS == EPISODE_STEPS - 1])
        next_obs = observations[t + 1] if not done[0] else observations[0]
        yield observations[t], next_obs, actions[t], rewards[t], done, [{"TimeLimit.truncated": bool(done[0])}]


def add_next(buffer: ReplayBuffer, stream: Iterator[tuple[Any, ...]]) -> None:
    buffer.add(*next(stream))


def space_sample(space: spaces.Box, rng: np.random.Generator) -> np.ndarray:
    if space.dtype == np.uint8:
        return rng.integers(0, 256, (1, *space.shape), dtype=np.uint8)
    return rng.normal(size=(1, *space.shape))


def in_turns(candidates: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Return microseconds per call for each round; the candidates take turns, so that drift affects all equally."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return times


def spread(times: list[float]) -> str:
    """Return the median and the quartiles of the rounds as text."""
    low, median, high = statistics.quantiles(times, n=4)
    return f"{median:.1f} us ({low:.1f} to {high:.1f})"


def array_bytes(buffer: Any) -> int:
    """Return the bytes of all arrays of a buffer, without views."""
    owners = [buffer, *([buffer._ring] if hasattr(buffer, "_ring") else [])]
    parts = [part for owner in owners for part in vars(owner).values()]
    arrays = sum(part.nbytes for part in parts if isinstance(part, np.ndarray) and part.base is None)
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage() for part in parts if isinstance(part, th.Tensor)
    }
    return arrays + sum(storage.nbytes() for storage in storages.values())


def resident() -> int | None:
    """Return the resident memory of this process in bytes, or None if the system does not show it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def disk_usage(directory: Path) -> int:
    """Return the bytes on the disk of scratch files, which are open files of this process without names (Linux)."""
    total = {}
    for file in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else ():
        try:
            if os.readlink(file).startswith(str(directory)):
                status = os.stat(file)
                total[status.st_ino] = status.st_blocks * 512
        except OSError:  # the folder's own descriptor
            continue
    return sum(total.values())


def row(measure: str, sb3: str, ours: str, value: float, bound: str, is_met: bool) -> dict[str, Any]:
    return {"measure": measure, "sb3": sb3, "ours": ours, "value": value, "bound": bound, "met": bool(is_met)}


def measure_vectors(size: int, rounds: int, calls: int) -> list[dict[str, Any]]:
    """Measure adding, sampling and memory with transitions of HalfCheetah's size."""
    buffers: dict[str, Any] = {
        "sb3": ReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu"),
        "ours": PackedReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu", seed=0),
        "sb3 n-step": NStepReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu", n_steps=3),
        "ours n-step": PackedReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu", n_steps=3, seed=0),
    }
    streams = {name: steps(OBSERVATIONS, 20_000) for name in buffers}
    for name, buffer in buffers.items():
        for _ in range(size):
            buffer.add(*next(streams[name]))
    sample = in_turns({name: partial(buffer.sample, BATCH_SIZE) for name, buffer in buffers.items()}, rounds, calls)
    add = in_turns({name: partial(add_next, buffers[name], streams[name]) for name in ("sb3", "ours")}, rounds, calls)
    rows = []
    for measure, times, base, name, bound in (
        (f"sample {BATCH_SIZE} of {size:,}", sample, "sb3", "ours", 3.0),
        (f"the same, 3-step returns (NStepReplayBuffer), of {size:,}", sample, "sb3 n-step", "ours n-step", 1.0),
        ("add one transition", add, "sb3", "ours", 1.0),
    ):
        faster = statistics.median(a / b for a, b in zip(times[base], times[name], strict=True))
        rows.append(
            row(measure, spread(times[base]), spread(times[name]), faster, f">= {bound:g} x as fast", faster >= bound)
        )
    sb3, ours = array_bytes(buffers["sb3"]), array_bytes(buffers["ours"])
    measure = f"memory of {size:,} transitions"
    texts = f"{sb3 / 1e6:.1f} MB", f"{ours / 1e6:.1f} MB"
    rows.append(row(measure, texts[0], texts[1], ours / sb3, "<= 0.6 x", ours <= 0.6 * sb3))
    return rows


def measure_prioritized(size: int, rounds: int, calls: int) -> list[dict[str, Any]]:
    """Measure the work of prioritised replay in one training step; SB3 has no such buffer."""
    buffer = PrioritizedReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu", seed=0)
    stream = steps(OBSERVATIONS, 20_000)
    for _ in range(size):
        buffer.add(*next(stream))
    errors = th.from_numpy(np.random.default_rng(0).exponential(size=(BATCH_SIZE, 1)))

    def step() -> None:
        buffer.add(*next(stream))
        batch = buffer.sample(BATCH_SIZE)
        buffer.update_priorities(batch.indices, errors)

    for _ in range(calls):
        step()
    times = in_turns({"ours": step}, rounds, calls)["ours"]
    median = statistics.median(times)
    measure = f"prioritised: add, sample {BATCH_SIZE} of {size:,}, update"
    return [row(measure, "none", spread(times), median / 1e3, "<= 0.15 ms", median <= 150)]


def measure_pixels(size: int, n_transitions: int, folder: Path) -> list[dict[str, Any]]:
    """Measure disk and resident memory of a buffer in files, while it is filled and sampled."""
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        start = resident()
        stream = steps(PIXELS, 200)
        buffer = PackedReplayBuffer(size, PIXELS, ACTIONS, "cpu", storage="memmap", directory=directory, seed=0)
        largest = 0
        began = time.perf_counter()
        for t in range(n_transitions):
            buffer.add(*next(stream))
            if t % 100 == 99:
                buffer.sample(16)
                largest = max(largest, resident() or 0)
        seconds = time.perf_counter() - began
        disk = disk_usage(directory)
        del buffer
    finally:
        shutil.rmtree(directory)
    per_million = disk / n_transitions * 1e6
    sb3 = 1e6 * (2 * int(np.prod(PIXELS.shape)) + 6 * 4 + 3 * 4)
    rows = [
        row(
            f"disk for 1,000,000 pixel transitions (64x64x9; {n_transitions:,} written)",
            f"{sb3 / GB:.1f} GB of memory",
            f"{per_million / GB:.1f} GB of disk",
            per_million / sb3,
            "<= 0.52 x",
            per_million <= 0.52 * sb3,
        )
    ]
    if start is not None:
        grown = (largest - start) / 2**30
        measure = f"resident memory while filling and sampling ({n_transitions / seconds:,.0f} transitions/s)"
        rows.append(row(measure, f"{sb3 / GB:.1f} GB", f"{grown:.2f} GiB more", grown, "<= 2 GiB more", grown <= 2))
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| measure | SB3 | ddpg_ext | value | asked for | met |", "|---|---|---|---|---|---|"]
    for entry in rows:
        met = "yes" if entry["met"] else "no"
        cells = (entry["measure"], entry["sb3"], entry["ours"], f"{entry['value']:.2f}", entry["bound"], met)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000, help="capacity of the buffers")
    parser.add_argument("--pixels", type=int, default=100_000, help="pixel transitions to write")
    parser.add_argument("--rounds", type=int, default=25, help="number of rounds")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder for the pixels")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--quick", action="store_true", help="a short try")
    args = parser.parse_args()
    th.set_num_threads(1)

    size, pixels, rounds, calls = (2_000, 300, 3, 20) if args.quick else (args.size, args.pixels, args.rounds, 200)
    rows = measure_pixels(max(size, pixels), pixels, args.folder)  # first, while the process is small
    rows = [*measure_vectors(size, rounds, calls), *rows, *measure_prioritized(size, rounds, calls)]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {th.__version__}, NumPy {np.__version__}, 1 thread"
    print(f"Medians over {rounds} rounds, in parentheses the middle half; {machine}\n\n{as_table(rows)}")
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine, "rounds": rounds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
