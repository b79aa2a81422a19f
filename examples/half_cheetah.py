"""
HalfCheetah-v5: run as fast as two legs and a spine can. Needs the extra mujoco.

    python examples/half_cheetah.py
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("HalfCheetah-v5", __doc__)


if __name__ == "__main__":
    main()
