"""Scores and speed."""

from janus_jax.evaluate.latency import Latency, measure
from janus_jax.evaluate.scores import SCORERS, AlignmentError, score
from janus_jax.evaluate.settings import STANDARD, evaluate_settings, format_table, parse_setting

__all__ = [
    "SCORERS",
    "STANDARD",
    "AlignmentError",
    "Latency",
    "evaluate_settings",
    "format_table",
    "measure",
    "parse_setting",
    "score",
]
