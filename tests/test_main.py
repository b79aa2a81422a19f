"""`python -m ddpg_ext` lists its commands, starts them, and names the nearest one."""

from pathlib import Path

import pytest

from ddpg_ext import __main__


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_it_lists_the_commands(arguments, capsys):
    __main__.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    for name, (summary, _) in __main__.COMMANDS.items():
        assert f"  {name:16} {summary}" in lines
    assert {"train", "enjoy", "plot", "load_from_hub"} <= set(__main__.COMMANDS)


@pytest.mark.parametrize(("name", "advice"), [("trian", "did you mean 'train'?"), ("xyz", "--help lists the commands")])
def test_an_unknown_command(name, advice, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main([name])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ddpg_ext: error: unknown command '{name}'; ")
    assert advice in line


def test_the_script_is_installed():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'ddpg_ext = "ddpg_ext.__main__:main"' in project
