"""
Every ```python block of the README and of the documentation runs; and the pages leave nothing out.

The blocks of a page are run in order and share their names, as a reader would run them. So that this takes seconds,
budgets are cut: ``learn`` trains for at most ``MAX_STEPS`` steps, and ``evaluate_policy`` plays at most
``MAX_EPISODES`` episodes.
"""

import inspect
import re
from pathlib import Path

import matplotlib
import pytest
import torch as th
from stable_baselines3.common import evaluation
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import ddpg_ext
from ddpg_ext import DDPGPaper, DDPGPaperError

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


def code_spans(*pages: str) -> set[str]:
    """What stands between backquotes outside of blocks, and its parts: `a=1, b.c` gives a, 1, b, c."""
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


def test_every_argument_stands_among_the_differences():
    assert constructor_arguments() - code_spans("docs/guide/differences.md") == set()


def test_every_argument_that_can_be_wrong_stands_on_the_page_of_errors():
    # SB3 takes any `verbose`; what torch says about a `device` is clear
    assert constructor_arguments() - {"verbose", "device"} - code_spans("docs/guide/errors.md") == set()


def test_every_name_of_the_package_stands_in_the_documentation():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in ddpg_ext.__all__ if not re.search(rf"\b{name}\b", text)] == []
    # ... and is there
    assert [name for name in ddpg_ext.__all__ if not hasattr(ddpg_ext, name)] == []


def test_every_error_type_stands_on_the_page_of_errors():
    errors = {
        name
        for name in ddpg_ext.__all__
        if inspect.isclass(error := getattr(ddpg_ext, name)) and issubclass(error, Exception)
    }
    defined = vars(ddpg_ext.common.errors).items()
    own = {name for name, value in defined if inspect.isclass(value) and issubclass(value, DDPGPaperError)}
    assert errors == own
    assert errors - code_spans("docs/guide/errors.md") == set()
