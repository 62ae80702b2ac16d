"""Scores and speed of decoded text."""

from janus_jax.evaluate.latency import Latency, measure
from janus_jax.evaluate.scores import SCORERS, AlignmentError, error_rates, score
from janus_jax.evaluate.settings import evaluate_settings, format_table, parse_setting, standard_settings

__all__ = [
    "SCORERS",
    "AlignmentError",
    "Latency",
    "error_rates",
    "evaluate_settings",
    "format_table",
    "measure",
    "parse_setting",
    "score",
    "standard_settings",
]
