"""The command ``python -m ddpg_ext``, installed as ``ddpg_ext``."""

import importlib
import sys
from collections.abc import Callable
from difflib import get_close_matches


def _call(module: str, function: str, *program: str) -> Callable[[list[str]], None]:
    """Return a function of a command's arguments that imports the module when it is called."""
    return lambda arguments: getattr(importlib.import_module(module), function)(*program, arguments)


_ZOO = ("ddpg_ext.zoo.programs", "run")
#: Name, summary, and function of the arguments that follow the name. A new command needs one line here
COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "train": ("train an agent, continue training, or tune hyperparameters", _call(*_ZOO, "train")),
    "enjoy": ("play a trained agent", _call(*_ZOO, "enjoy")),
    "record_video": ("record a video of an agent", _call(*_ZOO, "record_video")),
    "record_training": ("record one video of all checkpoints of a run", _call(*_ZOO, "record_training")),
    "plot": ("draw learning curves of run folders to a file", _call("ddpg_ext.plot.learning_curves", "main")),
    "sweep": ("train many seeds, tasks and algorithms; continue them", _call("ddpg_ext.zoo.sweep", "main")),
    "report": ("make tables of many runs, with confidence intervals", _call("ddpg_ext.plot.report", "main")),
    "plot_train": ("draw the returns of training (the Zoo's plot)", _call(*_ZOO, "plot_train")),
    "all_plots": ("collect and draw the evaluations of several runs (the Zoo's plot)", _call(*_ZOO, "all_plots")),
    "plot_from_file": ("draw the results that all_plots collected (the Zoo's plot)", _call(*_ZOO, "plot_from_file")),
    "load_from_hub": ("download an agent from the Hugging Face Hub", _call(*_ZOO, "load_from_hub")),
}


def main(arguments: list[str] | None = None) -> None:
    """
    Run a command, or list all of them.

    The process ends with status 2 if there is no such command.

    :param arguments: the name of a command and its arguments; None: those of the process
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        COMMANDS[name][1](rest)
    elif name in ("-h", "--help"):
        print("usage: python -m ddpg_ext COMMAND [OPTIONS]\n\ncommands (COMMAND --help lists the options of one):")
        print("\n".join(f"  {command:16} {summary}" for command, (summary, _) in COMMANDS.items()))
    else:
        close = get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {close[0]!r}?" if close else "python -m ddpg_ext --help lists the commands"
        print(f"ddpg_ext: error: unknown command {name!r}; {advice}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
