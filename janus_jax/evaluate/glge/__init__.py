"""Scores of the GLGE benchmark: eight tasks, each with its own metrics."""

from janus_jax.evaluate.glge.metrics import MissingLibraryError
from janus_jax.evaluate.glge.submission import (
    PUBLISHED,
    SPLITS,
    Predictions,
    format_scores,
    read_predictions,
    score_predictions,
)
from janus_jax.evaluate.glge.tasks import TASKS, Task, check_installed, mean, overall, score

__all__ = [
    "PUBLISHED",
    "SPLITS",
    "TASKS",
    "MissingLibraryError",
    "Predictions",
    "Task",
    "check_installed",
    "format_scores",
    "mean",
    "overall",
    "read_predictions",
    "score",
    "score_predictions",
]
