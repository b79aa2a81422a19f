"""Run the command ``plot``."""

from ddpg_ext.plot import main

if __name__ == "__main__":
    main()
