"""
Draw Figure 2 of the paper, in its colours, from sweep folders, folders of results, or JSON files of curves.

    python benchmarks/figure2.py benchmarks/results/{Pendulum-v1,cartpole-swingup-v0} docs/_static/figure2_pixels.json
    python benchmarks/figure2.py sweeps/batch_norm_pendulum sweeps/figure2_pendulum_pixels --out runs/figure2.png

benchmarks/settings/batch_norm_{pendulum,cartpole}.yml and figure2_*_pixels.yml are the settings of the sweeps.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import bootstrap

STYLES = {
    "no-targets": {"color": "silver", "label": "no target networks, batch norm (DPG)"},
    "no-batch-norm": {"color": "dimgrey", "label": "target networks"},
    "paper": {"color": "tab:green", "label": "target networks, batch norm"},
    "pixels": {"color": "tab:blue", "label": "target networks, from pixels"},
}
#: simulation steps per agent step, by environment and whether the agent sees pixels
REPEAT = {("Pendulum-v1", True): 3, ("dm_control/cartpole-swingup-v0", False): 9}
REPEAT["dm_control/cartpole-swingup-v0", True] = 9


def read(path: Path) -> list[dict[str, Any]]:
    """Return environment, variant and curve of each run; the curve has steps of the simulation."""
    if path.is_file():
        return json.loads(path.read_text())
    runs = []
    for file in sorted([*path.glob("*/*/result.json"), *path.glob("*/seed_*.json")]):
        result = json.loads(file.read_text())
        if "error" in result:
            continue
        repeat = REPEAT.get((result["env"], result["variant"] == "pixels"), 1)
        means = [float(np.mean(returns)) for returns in result["evaluation_returns"]]
        curve = [(repeat * step, mean) for step, mean in zip(result["evaluation_steps"], means, strict=True)]
        runs.append({"env": result["env"], "variant": result["variant"], "curve": curve})
    return runs


def draw(axes: Any, runs: list[dict[str, Any]]) -> None:
    """Draw the mean of each variant's curves, and the 95 % bootstrap interval of that mean."""
    for variant, style in STYLES.items():
        curves = np.array([run["curve"] for run in runs if run["variant"] == variant])
        if not len(curves):
            continue
        steps, returns = curves[0, :, 0], curves[:, :, 1]
        (line,) = axes.plot(steps, returns.mean(axis=0), **style)
        if len(returns) > 1:
            rng = np.random.default_rng(0)  # makes the figure reproducible
            ends = bootstrap((returns,), np.mean, axis=0, n_resamples=10_000, method="percentile", rng=rng)
            axes.fill_between(steps, *ends.confidence_interval, alpha=0.15, color=line.get_color())
    axes.set(xlabel="environment steps", ylabel="return without noise", xlim=(0, None))
    axes.set_title(f"DDPGPaper on {runs[0]['env']}")
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="folders of sweeps or results, or JSON files")
    parser.add_argument("--out", type=Path, default=Path("runs/figure2.png"), help="file for the figure")
    args = parser.parse_args()
    runs = [run for source in args.sources for run in read(source)]
    envs = list(dict.fromkeys(run["env"] for run in runs))
    if not envs:
        parser.error("there are no results in these folders")
    figure, panels = plt.subplots(1, len(envs), figsize=(5.5 * len(envs), 4.4), layout="constrained", squeeze=False)
    for axes, env in zip(panels[0], envs, strict=True):
        draw(axes, [run for run in runs if run["env"] == env])
    lines = {str(line.get_label()): line for axes in panels[0] for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(envs), 2))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
