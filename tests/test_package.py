"""The wheel holds the whole package, and works in an environment that has only its dependencies."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
TRAIN = """
import sys, ddpg_ext
assert ddpg_ext.__file__.startswith(sys.prefix), ddpg_ext.__file__
model = ddpg_ext.DDPGPaper("MlpPolicy", "Pendulum-v1", buffer_size=1_000, seed=0).learn(100)
assert model.num_timesteps == 100
model.save("agent")
print(ddpg_ext.DDPGPaper.load("agent"))
"""


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "ddpg_ext", source / "ddpg_ext", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    files = {path.relative_to(source).as_posix() for path in (source / "ddpg_ext").rglob("*") if path.is_file()}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == files

    venv.create(tmp_path / "env", with_pip=False)
    scripts = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    run(
        *PIP,
        "--python",
        scripts / "python",
        "install",
        "--ignore-installed",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    # The dependencies are those of this environment; a .pth file of its own, such as the package's, is not read there
    purelib = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    Path(purelib.strip(), "dependencies.pth").write_text(
        "\n".join({sysconfig.get_path(p) for p in ("purelib", "platlib")})
    )

    assert "MlpPolicy" in run(scripts / "python", "-I", "-c", TRAIN, cwd=tmp_path)
    assert "train" in run(scripts / "ddpg_ext", "--help", cwd=tmp_path)
