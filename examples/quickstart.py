"""
Train DDPG with the paper's settings, watch it, and keep everything in a run folder laid out like the RL Zoo's.

    python examples/quickstart.py                       # Pendulum-v1, 20,000 steps, one to four minutes
    python examples/quickstart.py HalfCheetah-v5 --steps 300000

Pendulum-v1 ends at a mean return of -164 (seed 0; -174 and -178 with seeds 1 and 2). What happens is in _runner.py; its
settings are DDPGPaper's own defaults.
"""

from _runner import command_line, one_line_errors, run

from ddpg_ext.zoo.hyperparameters import read_hyperparameters


@one_line_errors()
def main() -> None:
    parser = command_line(__doc__, steps=20_000)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="environment id, with continuous actions")
    args = parser.parse_args()
    run(args.env, read_hyperparameters("default"), args)


if __name__ == "__main__":
    main()
