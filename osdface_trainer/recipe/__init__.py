"""Recipes: TOML files read strictly into frozen dataclasses."""
