"""Stage 2: the one-step restorer (paper §3.3)."""
