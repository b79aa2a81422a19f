"""The trained agents in the repository: they open as runs of the Zoo, and have the returns of the results."""

import json
import re
from pathlib import Path

import pytest
import yaml
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import load_zoo_run

pytest.importorskip("mujoco")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
AGENTS = sorted(path for path in (BENCHMARKS / "agents").glob("*") if path.is_dir())


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_an_agent_has_its_return(folder):
    (settings,) = folder.glob("*/args.yml")
    args = yaml.load(settings.read_text(), yaml.UnsafeLoader)
    assert folder.name == f"{settings.parent.name}-{args['variant']}"
    package, _, task = args["env"].rpartition("/")
    if package:
        pytest.importorskip(package)
    file = BENCHMARKS / "results" / task / args["variant"] / f"seed_{args['seed']}.json"
    expected = json.loads(file.read_text())["final_return"]
    model, env = load_zoo_run(folder)
    env.seed(1)
    n_episodes = 8
    mean, _ = evaluate_policy(model, env, n_episodes)
    # Five standard errors, or what an episode that always goes alike may differ by
    tolerance = 5 * expected["std"] / n_episodes**0.5 + 0.01 * abs(expected["mean"])
    assert mean == pytest.approx(expected["mean"], abs=tolerance)


def test_agents_are_small():
    sizes = [file.stat().st_size for folder in AGENTS for file in folder.rglob("*") if file.is_file()]
    assert sizes
    assert max(sizes) <= 2**20
    assert sum(sizes) <= 8 * 2**20


def test_figure_3_of_an_agent(run_script, tmp_path):
    """A trained critic's estimates follow the returns."""
    folder = BENCHMARKS / "agents" / "Pendulum-v1-tuned"
    printed = run_script(BENCHMARKS / "figure3.py", folder, "--episodes", 5, "--out", tmp_path)
    assert float(re.search(r"correlation (0\.\d+)", printed)[1]) > 0.9
    assert [file.name for file in tmp_path.iterdir()] == ["figure3_Pendulum-v1.png"]
