"""Other ways to run the same weights."""

from .choose import choose_engine
from .engine import Engine

__all__ = ["Engine", "choose_engine"]
