"""Visual representation embedder."""

from .codebook import Codebook, lookup, select_codes, select_tokens
from .embedder import VRE, Projection, VQAutoencoder

__all__ = ["VRE", "Codebook", "Projection", "VQAutoencoder", "lookup", "select_codes", "select_tokens"]
