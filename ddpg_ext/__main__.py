"""The command ``python -m ddpg_ext``, installed as ``ddpg_ext``."""

import importlib
import os
import sys

from ddpg_ext.common.command_line import fail
from ddpg_ext.common.errors import suggestion

#: Name of each command, its summary, and the module of this package whose ``main`` gets the other arguments. None: a
#: program of the Zoo. A new command needs one line here
COMMANDS = {
    "train": ("train an agent, continue training, or tune hyperparameters", None),
    "enjoy": ("play a trained agent", None),
    "record_video": ("record a video of an agent", None),
    "record_training": ("record one video of all checkpoints of a run", None),
    "plot": ("draw learning curves of run folders to a file", "plot.learning_curves"),
    "sweep": ("train many seeds, tasks and algorithms; continue them", "zoo.sweep"),
    "report": ("make tables of many runs, with confidence intervals", "plot.report"),
    "plot_train": ("draw the returns of training (the Zoo's plot)", None),
    "all_plots": ("collect and draw the evaluations of several runs (the Zoo's plot)", None),
    "plot_from_file": ("draw the results that all_plots collected (the Zoo's plot)", None),
    "load_from_hub": ("download an agent from the Hugging Face Hub", None),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command with its arguments (default: those of the process); without a command, list all commands."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        module = COMMANDS[name][1]
        if module is None:
            importlib.import_module("ddpg_ext.zoo.programs").run(name, rest)
        else:
            importlib.import_module(f"ddpg_ext.{module}").main(rest)
    elif name in ("-h", "--help"):
        print("usage: python -m ddpg_ext COMMAND [OPTIONS]\n\ncommands (COMMAND --help lists the options of one):")
        print("\n".join(f"  {command:16} {summary}" for command, (summary, _) in COMMANDS.items()))
    else:
        fail("ddpg_ext", f"unknown command {name!r}; {suggestion(name, COMMANDS)}")


def script() -> None:
    """Run the installed command ``ddpg_ext``, which finds modules in the current folder like ``python -m``."""
    sys.path.insert(0, os.getcwd())
    main()


if __name__ == "__main__":
    main()
