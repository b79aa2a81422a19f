"""
InvertedDoublePendulum-v5: balance two poles on a cart; 1,000 steps without a fall give about 9,360.
Needs the extra mujoco.

    python examples/inverted_double_pendulum.py
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("InvertedDoublePendulum-v5", __doc__)


if __name__ == "__main__":
    main()
