"""
Pendulum-v1: swing a pendulum up and hold it there.

    python examples/pendulum.py

Seed 0, one thread of an AMD EPYC: a mean return of -156 over 100 episodes after 20,000 steps; evaluations between -90
and -200 from step 5,000 on.
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("Pendulum-v1", __doc__)


if __name__ == "__main__":
    main()
