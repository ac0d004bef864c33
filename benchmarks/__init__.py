"""`osdface bench`: what one restored face costs, beside the plain pipeline and the hardware's limit."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
