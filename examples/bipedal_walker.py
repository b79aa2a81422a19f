"""
BipedalWalker-v3: teach two legs to walk; a return of 300 counts as solved. Needs the extra box2d.

    python examples/bipedal_walker.py
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("BipedalWalker-v3", __doc__)


if __name__ == "__main__":
    main()
