"""`python -m osdface_trainer`, also the target of `accelerate launch -m osdface_trainer`."""

import sys

from osdface_core.cli.allocator import keep_freed_memory

from .cli import main

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
