"""Scores of the GLGE benchmark: eight tasks, each with its own metrics."""

from janus_jax.evaluate.glge.metrics import MissingLibraryError
from janus_jax.evaluate.glge.tasks import TASKS, Task, check_installed, mean, overall, score

__all__ = ["TASKS", "MissingLibraryError", "Task", "check_installed", "mean", "overall", "score"]
