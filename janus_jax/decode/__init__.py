"""From a checkpoint and sentences to sentences."""

from janus_jax.decode.beam import STOPS, beam_search
from janus_jax.decode.candidates import MaskPredictRules
from janus_jax.decode.generator import Generator
from janus_jax.decode.mask_predict import mask_predict, remask_counts
from janus_jax.decode.modes import MODES, trained_modes
from janus_jax.decode.output import Output

__all__ = [
    "MODES",
    "STOPS",
    "Generator",
    "MaskPredictRules",
    "Output",
    "beam_search",
    "mask_predict",
    "remask_counts",
    "trained_modes",
]
