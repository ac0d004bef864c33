"""`python -m osdface_trainer`, also the target of `accelerate launch -m osdface_trainer`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
