"""Other ways to run the same weights."""

from .choose import ENGINES, use_engine

__all__ = ["ENGINES", "use_engine"]
