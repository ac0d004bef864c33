"""Other ways to run the same weights."""

from .choose import ENGINES, choose_engine
from .engine import Engine

__all__ = ["ENGINES", "Engine", "choose_engine"]
