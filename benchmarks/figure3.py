"""
Draw Figure 3 of the paper: estimated Q against observed return, for trained agents.

    python benchmarks/figure3.py benchmarks/agents/Pendulum-v1-tuned runs/Pendulum-v1_1

Each agent plays test episodes without noise. A figure is written for each, and its bias and correlation are printed.
"""

import argparse
from pathlib import Path

from ddpg_ext import load_zoo_run
from ddpg_ext.callbacks.q_values import measure_q_values, plot_q_values, summarize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", type=Path, help="run folders")
    parser.add_argument("--episodes", type=int, default=20, help="test episodes of each agent (20)")
    parser.add_argument("--out", type=Path, default=Path("runs/figure3"), help="folder for the figures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in args.agents:
        model, env = load_zoo_run(folder, seed=0)
        values = measure_q_values(model, env, args.episodes)
        task = next(file.parent.name for file in folder.glob("*/args.yml"))
        plot_q_values(values, f"DDPGPaper on {task}").savefig(args.out / f"figure3_{task}.png", dpi=110)
        print(f"{folder.name}: {', '.join(f'{name} {value:.3g}' for name, value in summarize(values).items())}")


if __name__ == "__main__":
    main()
