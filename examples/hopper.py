"""
Hopper-v5: hop forward on one leg without falling. Needs the extra mujoco.

    python examples/hopper.py
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("Hopper-v5", __doc__)


if __name__ == "__main__":
    main()
