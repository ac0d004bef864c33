"""Clean faces, and the degraded ones made of them."""
