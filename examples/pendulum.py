"""
Pendulum-v1: swing a pendulum up and hold it there.

    python examples/pendulum.py
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("Pendulum-v1", __doc__)


if __name__ == "__main__":
    main()
