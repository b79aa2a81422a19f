"""
Run `python -m ddpg_ext` many times with one start of Python; see `zoo` in tests/zoo/conftest.py.

Each line of the standard input is a JSON object: `arguments`, `folder` to run in, `environ`. A process is forked for
it. Its id is printed, and its status when it has ended. Its output is in `stdout` and `stderr` in the folder.
"""

import atexit
import importlib
import json
import multiprocessing
import os
import signal
import sys
import traceback

import torch as th

from ddpg_ext.__main__ import main as ddpg_ext
from ddpg_ext.zoo.register import register_zoo


def run_job(arguments: list[str], folder: str, environ: dict[str, str]) -> int:
    os.chdir(folder)
    os.environ.update(environ)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        ddpg_ext(arguments)
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()  # W&B writes its file then
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    th.set_num_threads(1)
    multiprocessing.set_forkserver_preload(["ddpg_ext"])  # for environments in processes of their own
    register_zoo()
    importlib.import_module("rl_zoo3.plots")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = run_job(**json.loads(line))
            finally:
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
