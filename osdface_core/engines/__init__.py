"""Other ways to run the same weights: chosen by name, never by themselves."""

from .choose import ENGINES, use_engine

__all__ = ["ENGINES", "use_engine"]
