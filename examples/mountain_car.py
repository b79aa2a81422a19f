"""
MountainCarContinuous-v0: drive an underpowered car out of a valley; only the top is rewarded, so exploration decides.

    python examples/mountain_car.py
"""

from _runner import run_tuned


def main() -> None:
    run_tuned("MountainCarContinuous-v0", __doc__)


if __name__ == "__main__":
    main()
