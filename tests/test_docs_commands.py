"""
The commands in the README and the documentation name only things that exist.

Each line of a ``sh`` block, and each ``python ...`` or ``make ...`` between backquotes, is parsed: scripts, modules,
their flags, targets of the Makefile, extras and files must exist. Nothing is run. YAML blocks must parse.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from ddpg_ext.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
#: what a command may start with besides python, pip and make
OTHERS = {"git", "cd", "source", "export", "tensorboard"}
#: "py" is code of the package, which test_docs compares
LANGUAGES = {"py", "python", "sh", "yaml", "text", "bibtex"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and content of each fenced block except directives."""
    found = re.findall(r"^(`{3,})([^\n`]*)\n(.*?)^\1$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, content) for _, language, content in found if not language.startswith("{")]


def commands(page: Path) -> list[str]:
    """Return the commands of the blocks and of the text."""
    lines = []
    for language, content in blocks(page):
        if language == "sh":
            lines += content.replace("\\\n", " ").splitlines()
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines += [span for span in re.findall(r"`([^`\n]+)`", text) if re.match(r"(python|make|pip) \S", span)]
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


CASES = [(page, command) for page in PAGES for command in dict.fromkeys(commands(page))]


def flags_of(sources: list[Path]) -> set[str]:
    """Return all options in string literals of the files."""
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    return set(re.findall(r"""["'](--?[a-zA-Z][\w-]*)["']""", text))


def module_file(name: str) -> Path | None:
    """Return the file of a module without importing it."""
    package, *parts = name.split(".")
    path = Path(importlib.util.find_spec(package).submodule_search_locations[0], *parts)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    if words[:2] == ["-m", "ddpg_ext"]:
        command, *arguments = words[2:] or ["--help"]
        assert command in COMMANDS or command.startswith("-"), f"no command {command}"
        zoo = (module_file(f"rl_zoo3.{command}"), module_file(f"rl_zoo3.plots.{command}"))
        sources = [*(ROOT / "ddpg_ext" / "plot").glob("*.py"), *(ROOT / "ddpg_ext" / "zoo").glob("sweep*.py")]
        sources = [source for source in zoo if source] or sources
    elif words[0] == "-m":
        is_there = importlib.util.find_spec(words[1]) is not None and not words[1].startswith("ddpg_ext.")
        assert is_there, f"no module {words[1]}"
        sources, arguments = [], words[2:]
    else:
        sources, arguments = [ROOT / words[0]], words[1:]
        assert sources[0].is_file(), f"no script {words[0]}"
    flags = {word.partition("=")[0] for word in arguments if re.match(r"--?[a-zA-Z]", word)} - {"--help", "-h"}
    if sources:
        assert flags <= flags_of(sources), f"{words[:3]} has no {flags - flags_of(sources)}"
    if words[:2] == ["-m", "pytest"]:
        for word in arguments:
            assert word.startswith("-") or (ROOT / word.partition("::")[0]).exists(), f"no tests {word}"


def extras_of_the_package() -> set[str]:
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    return set(re.findall(r"^(\w+) = ", section.partition("\n[")[0], re.MULTILINE))


def check_pip(words: list[str]) -> None:
    extras = extras_of_the_package()
    for i, word in enumerate(words):
        if match := re.fullmatch(r"(?:\.|ddpg_ext)\[([\w,]+)\]", word):
            assert set(match[1].split(",")) <= extras, f"no extra among {match[1]}"
        if word == "-c":
            assert (ROOT / words[i + 1]).is_file(), f"no {words[i + 1]}"


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \??=" if is_variable else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"


@pytest.mark.parametrize(("page", "command"), CASES, ids=[f"{page.name}: {command}"[:80] for page, command in CASES])
def test_what_a_command_names_is_there(page, command):
    words = shlex.split(command, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):  # variables of the environment
        words = words[1:]
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "python":
        check_python(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program == "make":
        check_make(arguments)
    else:
        assert program in OTHERS, f"{program} is unknown to this test"


def test_there_are_commands():
    assert {command.split()[0] for _, command in CASES} >= {"python", "pip", "make", "git", "cd"}


@pytest.mark.parametrize("page", ["README.md", "docs/guide/installation.md"])
def test_every_extra_is_named(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {extra for extra in extras_of_the_package() if f"`{extra}`" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_of_a_language_that_is_tested(page):
    for language, content in blocks(page):
        assert language in LANGUAGES, f"a block in {language!r}: python, sh and yaml are tested"
        if language == "yaml":
            assert yaml.safe_load(content) is not None
