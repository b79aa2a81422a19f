"""
Measure the cost of a sweep: its time against the same runs by hand, and the memory of its driver over many short runs.

    python benchmarks/sweep_overhead.py time      # 4 runs of 20,000 steps, on a machine without other work
    python benchmarks/sweep_overhead.py memory    # 200 runs of 50 steps

By hand, two processes of the Zoo's `train` run at the same time. They play no final episode, but the sweep plays one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROGRAM = ["-m", "ddpg_ext", "sweep"]
TRAIN = [sys.executable, "-m", "rl_zoo3.train", "--algo", "td3", "--env", "Pendulum-v1", "--eval-freq", "-1"]


def start_sweep(folder: str, *options: str) -> subprocess.Popen:
    """Start a sweep with two runs at a time."""
    command = [sys.executable, *PROGRAM, "--env", "Pendulum-v1", "--eval-freq", "-1", "--final-episodes", "1"]
    return subprocess.Popen([*command, "-f", folder, "--jobs", "2", *options], stdout=subprocess.DEVNULL)


def measure_time(n_steps: int) -> None:
    """Print the seconds of the runs by hand and of the sweep, in turns."""
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for seeds in ((0, 1), (2, 3)):
                options = ["-n", str(n_steps), "-f", folder, "--num-threads", "1", "--seed"]
                runs = [subprocess.Popen([*TRAIN, *options, str(seed)], stdout=subprocess.DEVNULL) for seed in seeds]
                for run in runs:
                    run.wait()
            by_hand = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            start_sweep(folder, "--algo", "td3", "--seed", "0-3", "-n", str(n_steps)).wait()
            sweep = time.perf_counter() - start
        print(f"by hand {by_hand:.1f} s, sweep {sweep:.1f} s: {sweep / by_hand - 1:+.1%}", flush=True)


def measure_memory(n_runs: int) -> None:
    """Print the resident memory of the driver over the number of finished runs."""
    with tempfile.TemporaryDirectory() as folder:
        process = start_sweep(folder, "--seed", f"0-{n_runs - 1}", "-n", "50", "-params", "buffer_size:100")
        done = threading.Event()

        def watch() -> None:
            while not done.wait(5):
                finished = len(list(Path(folder).glob("*/*/result.json")))
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                print(f"{finished} runs: {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f} MiB", flush=True)

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        done.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantity", choices=["time", "memory"])
    parser.add_argument("--steps", type=int, default=20_000, help="steps of each of the four runs, for time")
    parser.add_argument("--runs", type=int, default=200, help="number of runs of 50 steps, for memory")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.quantity == "time":
        measure_time(args.steps)
    else:
        measure_memory(args.runs)


if __name__ == "__main__":
    main()
