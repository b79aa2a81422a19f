"""Scripts of benchmarks/, as modules and as programs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def load_benchmark():
    """Import a script as a module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(BENCHMARKS))  # the scripts import each other
            spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run_benchmark():
    """Run a script as a user does, and return what it prints."""

    def run(name, *arguments):
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
