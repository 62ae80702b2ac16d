"""Imports and exports of other programs' models, and averages of checkpoints."""

from janus_jax.convert.errors import ConvertError
from janus_jax.convert.exporting import FORMATS, export_model
from janus_jax.convert.fairseq import model_config_from_released, params_from_released, params_to_released
from janus_jax.convert.hub import CardOptions
from janus_jax.convert.importing import SOURCES, ImportRequest, import_model
from janus_jax.convert.report import Report

__all__ = [
    "FORMATS",
    "SOURCES",
    "CardOptions",
    "ConvertError",
    "ImportRequest",
    "Report",
    "export_model",
    "import_model",
    "model_config_from_released",
    "params_from_released",
    "params_to_released",
]
