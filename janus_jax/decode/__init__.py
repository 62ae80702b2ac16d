"""From a checkpoint and sentences to sentences."""

from janus_jax.decode.beam import STOPS, beam_search
from janus_jax.decode.generator import MODES, TRAINED_MODES, Generator, Output
from janus_jax.decode.mask_predict import MaskPredictRules, mask_predict, remask_counts

__all__ = [
    "MODES",
    "STOPS",
    "TRAINED_MODES",
    "Generator",
    "MaskPredictRules",
    "Output",
    "beam_search",
    "mask_predict",
    "remask_counts",
]
