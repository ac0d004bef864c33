"""`python -m osdface_core`, the same as `osdface`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
