"""
Every ```python block of the README and of the documentation runs; and the pages leave nothing out.

The blocks of a page are run in order and share their names, as a reader would run them. So that this takes seconds,
budgets are cut: ``learn`` trains for at most ``MAX_STEPS`` steps, and ``evaluate_policy`` plays at most
``MAX_EPISODES`` episodes. Episodes of Pendulum-v1 have 50 steps.
"""

import inspect
import json
import re
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common import evaluation
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

import ddpg_ext
from ddpg_ext import DDPGPaper, DDPGPaperError
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
MAX_STEPS = 120
MAX_EPISODES = 2

matplotlib.use("Agg")


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """First line and source of each block."""
    text = page.read_text(encoding="utf-8")
    matches = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in matches]


PAGES_WITH_CODE = [page for page in PAGES if python_blocks(page)]


@pytest.fixture
def small_budgets(monkeypatch):
    learn, evaluate_policy = OffPolicyAlgorithm.learn, evaluation.evaluate_policy

    def short_learn(self, total_timesteps, *args, **kwargs):
        return learn(self, min(total_timesteps, MAX_STEPS), *args, **kwargs)

    def short_evaluate_policy(model, env, n_eval_episodes=10, *args, **kwargs):
        return evaluate_policy(model, env, min(n_eval_episodes, MAX_EPISODES), *args, **kwargs)

    monkeypatch.setattr(gym.spec("Pendulum-v1"), "max_episode_steps", 50)
    monkeypatch.setattr(OffPolicyAlgorithm, "learn", short_learn)
    monkeypatch.setattr(evaluation, "evaluate_policy", short_evaluate_policy)


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, small_budgets, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # for what the blocks save
    n_threads = th.get_num_threads()
    names = {"__name__": "__main__"}
    try:
        for line, source in python_blocks(page):
            # Blank lines first, so that a traceback names the page's own line
            exec(compile("\n" * line + source, str(page), "exec"), names)
    finally:
        th.set_num_threads(n_threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text) + re.findall(r'<img src="([^"]+)"', text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def code_spans(*pages: str) -> set[str]:
    """Names in the inline code of pages: `a=1, b.c` gives a, 1, b, c."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return {name for span in spans for name in re.findall(r"\w+", span)}


def test_every_module_stands_on_the_architecture_page():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"^ddpg_ext/\n(.*?)^examples/", text, re.MULTILINE | re.DOTALL)[1]
    package = ROOT / "ddpg_ext"
    modules = [path.relative_to(package) for path in package.rglob("*.py") if path.name != "__init__.py"]
    for folder in {module.parts[0] for module in modules if len(module.parts) > 1}:
        section = re.search(rf"^  {folder}/.*?(?=^  \w+/|\Z)", tree, re.MULTILINE | re.DOTALL)
        assert section, f"no section {folder}/"
        named = set(re.findall(r"\w+\.py", section[0]))
        assert named == {module.name for module in modules if module.parts[0] == folder}
    named = set(re.findall(r"^  (\w+\.py)", tree, re.MULTILINE)) - {"__init__.py"}
    assert named == {module.name for module in modules if len(module.parts) == 1}


def constructor_arguments() -> set[str]:
    return set(inspect.signature(DDPGPaper).parameters) - {"_init_setup_model"}


def test_every_argument_that_can_be_wrong_stands_on_the_page_of_errors():
    # SB3 takes any `verbose`; what torch says about a `device` is clear
    assert constructor_arguments() - {"verbose", "device"} - code_spans("docs/guide/errors.md") == set()


def test_the_citation_is_of_this_version():
    assert f"{{{ddpg_ext.__version__}}}" in (ROOT / "CITATION.bib").read_text(encoding="utf-8")
    assert f"\nversion: {ddpg_ext.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def migration_tables() -> list[dict[str, tuple[str, str]]]:
    """Of arguments and of policy keywords: name to the defaults of SB3 and of this package, as they are written."""
    text = (ROOT / "docs" / "guide" / "migration.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| \w+ \| `DDPG`.*\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [[[cell.strip(" `") for cell in row.split("|")[1:4]] for row in table.splitlines()] for table in tables]
    return [{name: (theirs, ours) for name, theirs, ours in table} for table in rows]


@pytest.mark.parametrize("table", [0, 1])
def test_migration_names_every_argument_with_its_true_defaults(table):
    theirs, ours = [(DDPG, DDPGPaper), (TD3Policy, DDPGPaperPolicy)][table]
    theirs, ours = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
    rows = migration_tables()[table]
    assert list(rows) == [name for name in theirs if name not in ("observation_space", "action_space", "lr_schedule")]
    for name, cells in rows.items():
        for cell, parameters in zip(cells, (theirs, ours), strict=True):
            has_default = name in parameters and parameters[name].default is not inspect.Parameter.empty
            assert bool(cell) == has_default, name
            names = {"nn": nn, "th": th, "FlattenExtractor": FlattenExtractor}
            assert not cell or eval(cell, names) == parameters[name].default, name


def test_the_defaults_of_the_policies_are_those_of_the_reference():
    text = (ROOT / "docs" / "modules" / "policies.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| ")]
    table = {name: cells for name, *cells in rows}
    for i, name in enumerate(table["policy="]):
        policy = DDPGPaper.policy_aliases[name.strip('"')]
        assert policy.__name__ == table["class"][i]
        defaults = {key: value for key, value in inspect.getmembers(policy) if key.startswith("default_")}
        assert set(defaults) == {key for key in table if key.startswith("default_")}
        for key, value in defaults.items():
            assert table[key][i] == value.__name__ if inspect.isclass(value) else eval(table[key][i]) == value, key


def test_migration_names_all_that_is_new():
    new = set(inspect.signature(DDPGPaper).parameters) - set(inspect.signature(DDPG).parameters)
    new |= set(inspect.signature(DDPGPaperPolicy).parameters) - set(inspect.signature(TD3Policy).parameters)
    assert new - code_spans("docs/guide/migration.md") == set()


def test_every_error_type_stands_on_the_page_of_errors():
    defined = vars(ddpg_ext.common.errors).items()
    errors = {name for name, value in defined if inspect.isclass(value) and issubclass(value, DDPGPaperError)}
    assert errors <= set(ddpg_ext.__all__)
    assert errors - code_spans("docs/guide/errors.md") == set()


def test_the_page_of_the_algorithm_shows_the_code_as_it_is():
    code = [ROOT / "ddpg_ext" / name for name in ("ddpg_paper/update.py", "common/noise.py", "common/layers.py")]
    lines = "".join(re.sub(r"^ +", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE) for file in code)
    page = (ROOT / "docs/guide/algorithm.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(shown) == 6
    for block in shown:
        assert re.sub(r"^ +", "", block, flags=re.MULTILINE) in lines


def final_returns(task: str, variant: str) -> list[float]:
    """Return the final return of each run, ordered by seed."""
    files = (ROOT / "benchmarks" / "results" / task / variant).glob("*.json")
    results = sorted((json.loads(file.read_text()) for file in files), key=lambda result: result["seed"])
    return [result["final_return"]["mean"] for result in results]


def cells_of(page: str, start: str) -> list[str]:
    """Of the first row of a table that starts so."""
    text = (ROOT / page).read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_the_figures_of_the_comparison_are_those_of_the_pages():
    performance = "docs/guide/performance.md"
    speed = dict(
        zip(
            cells_of(performance, "| environment | batch"),
            cells_of(performance, "| Pendulum-v1 | 64 | 1 |"),
            strict=True,
        )
    )
    _, ours, theirs, _ = cells_of("docs/guide/comparison.md", "| steps per second")
    assert ours == f"{speed['plain']} without batch normalisation and weight decay; {speed['paper']} with both"
    assert theirs == f"{speed['SB3']} (SBX, on both cores: {speed['SBX']})"

    returns = {}
    variants = {
        "the defaults": "paper",
        "`batch_norm=False`": "no-batch-norm",
        "SB3's `DDPG`, matched": "sb3-ddpg-matched",
    }
    for name, folder in variants.items():
        returns[name] = np.mean(final_returns("Pendulum-v1", folder))
        assert cells_of("docs/modules/ddpg_paper.md", f"| {name} |")[1] == f"{returns[name]:.1f}"
    defaults, plain, sb3 = (f"{value:.0f}" for value in returns.values())
    _, ours, theirs, _ = cells_of("docs/guide/comparison.md", "| Pendulum-v1 after 20,000 steps")
    assert ours == f"{defaults}; {plain} without batch normalisation"
    assert theirs == f"{sb3} with the paper's minibatch, tau and noise"

    _, sb3, packed = cells_of("docs/guide/buffers.md", "| HalfCheetah-v5")
    _, ours, theirs, _ = cells_of("docs/guide/comparison.md", "| memory of 1,000,000 HalfCheetah")
    assert (ours.strip("[").partition("]")[0], theirs) == (packed, sb3)


def rows_of(page: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the table with this heading, without the heading."""
    _, _, text = (ROOT / page).read_text(encoding="utf-8").partition(f"\n{heading}")
    rows = [line for line in text.partition("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_the_tables_of_results_follow_from_the_raw_data():
    results = "docs/guide/results.md"
    variants = {"`paper`": "paper", "`tuned`": "tuned", "SB3's `DDPG`": "sb3-ddpg-zoo"}
    tuned = rows_of(results, "| task | steps | settings |")
    for task, _, settings, _, final, *_ in tuned:
        returns = final_returns(task, variants[settings])
        spread = f" ± {np.std(returns, ddof=1):,.1f}" if len(returns) > 1 else ""
        assert final == f"{np.mean(returns):,.1f}{spread}", (task, settings)
    heading = "| task | steps | statistics |"
    statistics = [*rows_of(results, heading), *rows_of("docs/maintainers.md", heading)]
    for name, _, variant, seeds, final in statistics:
        task = "cartpole-swingup-v0" if "cartpole" in name else name.partition(",")[0]
        variant = variant.strip("`").replace("no batch normalisation", "no-batch-norm")
        is_default = variant == "joint" and not (ROOT / "benchmarks/results" / task / "joint").exists()
        returns = final_returns(task, "paper" if is_default else variant)
        first, _, last = seeds.partition(" to ")
        returns = returns[: int(last or first) + 1]
        spread = f" ({min(returns):,.1f} to {max(returns):,.1f})" if len(returns) > 1 else ""
        assert final == f"{np.mean(returns):,.1f}{spread}", (task, variant)
    for task, _, *cells, _ in rows_of("README.md", "| task | steps |"):
        for cell, variant in zip(cells, ("paper", "tuned"), strict=True):
            returns = final_returns(task, variant)
            digits = 1 if returns and abs(np.mean(returns)) < 10 else 0
            spread = f" ± {np.std(returns, ddof=1):,.{digits}f}" if len(returns) > 1 else ""
            spread += {1: " (1 seed)", 2: " (2 seeds)"}.get(len(returns), "")
            expected = f"{np.mean(returns):,.{digits}f}{spread}" if returns else ""
            assert cell == expected, (task, variant)
    assert tuned
    assert statistics
