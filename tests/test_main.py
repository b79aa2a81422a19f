"""`python -m ddpg_ext` lists its commands, starts them, and names the nearest one."""

import subprocess
import sys

import pytest

from ddpg_ext import __main__


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_it_lists_the_commands(arguments, capsys):
    __main__.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    for name, (summary, _) in __main__.COMMANDS.items():
        assert f"  {name:16} {summary}" in lines
    assert {"train", "enjoy", "plot", "load_from_hub"} <= set(__main__.COMMANDS)


@pytest.mark.parametrize(("name", "advice"), [("trian", "did you mean 'train'?"), ("xyz", "known: ")])
def test_an_unknown_command(name, advice, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main([name])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ddpg_ext: error: unknown command '{name}'; ")
    assert advice in line


def test_the_script_finds_modules_in_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text("import gymnasium as gym\ngym.register('Mine-v0', entry_point='mine:Env')\n")
    code = "import sys; sys.path.remove(''); from ddpg_ext.__main__ import script; script()"
    command = [sys.executable, "-c", code, "sweep", "--env", "Mine-v0", "--gym-packages", "mine", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "--gym-packages mine cannot be imported" not in done.stderr
    assert "Mine-v0" in done.stderr, "it has no class Env"
