"""`osdface bench`: what one restored face costs here, beside the plain pipeline, and how near the hardware's limit."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
