"""`python -m osdface_core`, the same as `osdface`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
