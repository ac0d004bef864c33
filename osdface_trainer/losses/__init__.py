"""Training losses. Images are `signed` (B, 3, H, W); nothing here is imported at inference."""
