"""Stage 1: the visual representation embedder (paper §3.2)."""
