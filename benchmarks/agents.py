"""
Keep the agent of the median seed of a sweep: only its weights, in a run folder with the layout of the RL Zoo.

    python benchmarks/agents.py sweeps/results_pendulum/paper sweeps/results_pendulum/tuned

The median is that of the final return. In further training of the agent, its optimisers start without averages, and
its targets as copies of the networks. `load_zoo_run("benchmarks/agents/Pendulum-v1-tuned")` opens it.
"""

import argparse
import io
import json
import shutil
import zipfile
from pathlib import Path

from ddpg_ext import load_zoo_run

AGENTS = Path(__file__).parent / "agents"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", type=Path, help="folders of a sweep's variants")
    for variant in parser.parse_args().variants:
        runs = {file.parent: json.loads(file.read_text()) for file in sorted(variant.glob("*/result.json"))}
        for env in sorted({result["env"] for result in runs.values()}):
            ranked = [run for run, result in runs.items() if result["env"] == env and "final_return" in result]
            ranked.sort(key=lambda run: runs[run]["final_return"]["mean"])
            run = ranked[(len(ranked) - 1) // 2]
            keep(run, runs[run]["variant"])


def keep(run: Path, variant: str) -> None:
    """Write the weights and settings of a run to a new folder, with equal tensors stored once."""
    model, _ = load_zoo_run(run, checkpoint="last")
    policy = model.policy
    for target, online in ((policy.actor_target, policy.actor), (policy.critic_target, policy.critic)):
        tensors = online.state_dict(keep_vars=True)
        for name, tensor in target.state_dict(keep_vars=True).items():
            tensor.data = tensors[name].data
    for network in (policy.actor, policy.critic):
        network.optimizer.state.clear()
    (settings,) = (file.parent for file in run.glob("*/config.yml"))
    folder = AGENTS / f"{settings.name}-{variant}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(settings, folder / settings.name, ignore=shutil.ignore_patterns("command.txt"))
    stored = io.BytesIO()
    model.save(stored)
    file = folder / f"{settings.name}.zip"
    with (
        zipfile.ZipFile(stored) as members,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as smaller,
    ):
        for name in members.namelist():
            smaller.writestr(name, members.read(name))
    print(f"{folder}: {run.name}, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
