"""Imports of the package point one way, inside functions as well, and form no circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ddpg_ext

ROOT = Path(ddpg_ext.__file__).parent
#: each room may import itself and those to its right; names in a set do not import each other
ORDER = [
    {"plot"},
    {"zoo"},
    {"checkpoints", "export", "callbacks"},
    {"ddpg_paper"},
    {"serialization", "buffers", "envs"},
    {"common"},
    {"_version"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
#: the exception: they import `checkpoints` when they are called, because it imports `ddpg_paper`
FILE_METHODS = {
    *("save", "load", "set_parameters", "save_replay_buffer", "load_replay_buffer", "resume", "from_sb3"),
    "to_sb3_ddpg",
}


class Imports(ast.NodeVisitor):
    """Collects the package's modules that a module imports, those for type checkers aside."""

    def __init__(self, module: str, modules: set[str]) -> None:
        self.module, self.modules = module, modules
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not (self.module == "ddpg_ext.ddpg_paper.ddpg_paper" and node.name in FILE_METHODS):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names} & self.modules

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self.module} has a relative import"
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            self.found |= {name if name in self.modules else str(node.module)} & self.modules


def import_graph() -> dict[str, set[str]]:
    files = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["ddpg_ext", *path.relative_to(ROOT).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in files.items():
        imports = Imports(module, set(files))
        imports.visit(ast.parse(path.read_text()))
        graph[module] = imports.found - {module}
    return graph


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_imports_form_no_circle():
    try:
        list(TopologicalSorter(import_graph()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_point_one_way():
    graph = import_graph()
    assert len(graph) > 50
    against = []
    for module, imports in graph.items():
        if room(module) not in RANK:  # `ddpg_ext` itself and its command, which import all rooms
            assert room(module) in ("", "__main__"), f"{module} has no place in the order"
            continue
        for imported in imports:
            ours, theirs = RANK[room(module)], RANK.get(room(imported), -1)
            if room(module) != room(imported) and ours >= theirs:
                against.append(f"{module} -> {imported}")
    assert against == []


def test_each_room_is_in_the_order():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= set(RANK)
