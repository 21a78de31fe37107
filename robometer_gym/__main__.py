"""`python -m robometer_gym`: the command robometer-gym."""

import sys

from robometer_gym.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
