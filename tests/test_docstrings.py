"""
Docstrings: imperative summaries, and one ``:param:`` for each parameter of a public name.

That summaries are one sentence on one line is checked by ruff's D rules.
"""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import ddpg_ext

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]


#: words that no imperative sentence begins with; ruff's D401 knows the wrong forms of verbs alone
NOT_VERBS = (
    "a|all|an|and|any|as|at|both|by|each|every|for|from|how|if|in|into|it|its|no|nobody|not|of|on|one|only|out|so|some|"
    "such|that|the|their|there|these|they|this|those|to|two|what|when|where|whether|which|whose|with|without"
)
SOURCES = [path.relative_to(ROOT / "ddpg_ext") for path in sorted((ROOT / "ddpg_ext").rglob("*.py"))]


def functions(node: ast.AST, private: bool = False):
    """All functions within a node, and whether their names or those of their classes are private."""
    for child in ast.iter_child_nodes(node):
        is_private = private or (isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name.startswith("_"))
        if isinstance(child, ast.FunctionDef) and not any("property" in ast.dump(d) for d in child.decorator_list):
            yield child, is_private
        yield from functions(child, is_private)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_summaries_are_imperative_and_private_functions_have_no_list_of_parameters(path):
    for function, is_private in functions(ast.parse((ROOT / "ddpg_ext" / path).read_text(encoding="utf-8"))):
        doc = ast.get_docstring(function) or "Do."
        first = doc.split()[0].strip(".,:;")
        # A capital letter, and neither a plural nor a third person
        assert re.fullmatch("[A-Z]([a-z-]*([^s]|ss))?", first), f"{function.name}: {doc}"
        assert not re.fullmatch(NOT_VERBS, first.lower()), f"{function.name}: {doc}"
        if is_private and function.name != "__init__":
            assert ":param" not in doc, f"{function.name}: {doc}"


def documented() -> dict[str, list[str]]:
    """Names that autodoc describes, and their members."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, options in re.findall(
            r"^\.\. auto(?:class|function):: ([\w.]+)\n((?:   :.*\n)*)", text, re.MULTILINE
        ):
            members = re.search(r":members: *(.*)", options)
            found[name] = [word.strip() for word in members[1].split(",") if word.strip()] if members else []
    return found


def lookup(path: str) -> object:
    """The object of a dotted path."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"there is no {path}")


DOCUMENTED = documented()
CALLABLES = list(DOCUMENTED) + [f"{name}.{member}" for name, members in DOCUMENTED.items() for member in members]
CALLABLES = [path for path in CALLABLES if callable(lookup(path))]


def parameters_of(value: object) -> list[str]:
    if inspect.isclass(value):
        if issubclass(value, tuple):  # a NamedTuple: its fields have comments of their own
            return []
        own_init = any("__init__" in vars(cls) for cls in value.__mro__ if cls.__module__.startswith("ddpg_ext"))
        if not own_init and not dataclasses.is_dataclass(value):
            return []
    return [name.lstrip("*") for name in inspect.signature(value).parameters if name not in ("self", "cls")]


@pytest.mark.parametrize("path", CALLABLES)
def test_docstring_names_each_parameter(path):
    value = lookup(path)
    doc = inspect.getdoc(value)
    assert doc, "no docstring"
    last = doc
    while other := re.search(r"parameters are those of :\w+:`~?([\w.]+)`", last):
        last = inspect.getdoc(lookup(other[1] if "." in other[1] else f"{value.__module__}.{other[1]}"))
        doc += last
    if inspect.isclass(value):  # a constructor that is inherited, from a class that the docstring names
        owner = next(cls for cls in value.__mro__ if "__init__" in vars(cls))
        if owner is not value and f":class:`{owner.__name__}`" in doc:
            doc += "\n" + inspect.getdoc(owner)
    named = re.findall(r"^:param (\w+):", doc, re.MULTILINE)
    signature = parameters_of(value)
    assert [name for name in signature if name not in named] == []
    if not inspect.isclass(value):
        assert [name for name in named if name not in signature] == []
        returns = inspect.signature(value).return_annotation
        gives = returns not in (None, "None", inspect.Signature.empty) and not inspect.isgeneratorfunction(
            inspect.unwrap(value)
        )
        assert not gives or ":return:" in doc or not signature, "no :return:"


def test_every_public_name_is_on_a_reference_page():
    documented_objects = {id(lookup(path)) for path in DOCUMENTED}
    public = {f"ddpg_ext.{name}" for name in ddpg_ext.__all__ if not name.startswith("__")}
    for path in (ROOT / "ddpg_ext").glob("*/__init__.py"):
        module = importlib.import_module(f"ddpg_ext.{path.parent.name}")
        public |= {f"{module.__name__}.{name}" for name in getattr(module, "__all__", [])}
    assert sorted(name for name in public if id(lookup(name)) not in documented_objects) == []
