"""The command ``python -m ddpg_ext``, installed as ``ddpg_ext``."""

import sys
from collections.abc import Callable
from difflib import get_close_matches


def _zoo(program: str) -> Callable[[list[str]], None]:
    """Return a function that runs a program of the RL Zoo."""

    def run(arguments: list[str]) -> None:
        from ddpg_ext.zoo import programs

        programs.run(program, arguments)

    return run


def _plot(arguments: list[str]) -> None:
    from ddpg_ext import plot

    plot.main(arguments)


def _report(arguments: list[str]) -> None:
    from ddpg_ext.plot import report

    report.main(arguments)


#: Name, summary, and function of the arguments that follow the name. A new subcommand needs one line here. Its function
#: imports what it needs, so that the other commands start fast
COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "train": ("train an agent, continue training, or tune hyperparameters", _zoo("train")),
    "enjoy": ("play a trained agent", _zoo("enjoy")),
    "record_video": ("record a video of an agent", _zoo("record_video")),
    "record_training": ("record one video of all checkpoints of a run", _zoo("record_training")),
    "plot": ("draw learning curves of run folders to a file", _plot),
    "report": ("make tables of the results of many runs, with confidence intervals", _report),
    "plot_train": ("draw the returns of training (the Zoo's plot)", _zoo("plot_train")),
    "all_plots": ("collect and draw the evaluations of several runs (the Zoo's plot)", _zoo("all_plots")),
    "plot_from_file": ("draw what all_plots collected (the Zoo's plot)", _zoo("plot_from_file")),
    "load_from_hub": ("download an agent from the Hugging Face Hub", _zoo("load_from_hub")),
}


def main(arguments: list[str] | None = None) -> None:
    """
    Run a subcommand, or list all of them.

    The process ends with status 2 if there is no such subcommand.

    :param arguments: the name of a subcommand and its arguments; None: those of the process
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        COMMANDS[name][1](rest)
    elif name in ("-h", "--help"):
        print("usage: python -m ddpg_ext COMMAND [OPTIONS]\n\ncommands (COMMAND --help lists the options of one):")
        print("\n".join(f"  {name:16} {summary}" for name, (summary, _) in COMMANDS.items()))
    else:
        close = get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {close[0]!r}?" if close else "python -m ddpg_ext --help lists the commands"
        print(f"ddpg_ext: error: unknown command {name!r}; {advice}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
