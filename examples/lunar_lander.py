"""
LunarLanderContinuous-v3: land between the flags; a return of 200 counts as solved. Needs the extra box2d.

    python examples/lunar_lander.py
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("LunarLanderContinuous-v3", __doc__)


if __name__ == "__main__":
    main()
