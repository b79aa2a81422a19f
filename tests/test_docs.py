"""
Every ```python block of the README and of the documentation runs.

The blocks of a page are run in order and share their names, as a reader would run them. So that this takes seconds,
budgets are cut: ``learn`` trains for at most ``MAX_STEPS`` steps, and ``evaluate_policy`` plays at most
``MAX_EPISODES`` episodes.
"""

import re
from pathlib import Path

import matplotlib
import pytest
import torch as th
from stable_baselines3.common import evaluation
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

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


def test_the_pages_have_code():
    names = {page.name for page in PAGES_WITH_CODE}
    assert {"README.md", "quickstart.md", "ddpg_paper.md", "noise.md", "custom_policies.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
