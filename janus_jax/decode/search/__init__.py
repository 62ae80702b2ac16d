"""Searches over callbacks and a cache: they know nothing of the model."""
