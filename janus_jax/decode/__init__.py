"""From a checkpoint and sentences to sentences: `Generator`, its modes, and the searches below them."""

from janus_jax.decode.generator import Generator
from janus_jax.decode.modes import MODES, Mode, trained_modes
from janus_jax.decode.search.beam import STOPS, beam_search
from janus_jax.decode.search.candidates import MaskPredictRules
from janus_jax.decode.search.mask_predict import mask_predict, remask_counts
from janus_jax.decode.types import DecodeRequest, DecodeResult, Output

__all__ = [
    "MODES",
    "STOPS",
    "DecodeRequest",
    "DecodeResult",
    "Generator",
    "MaskPredictRules",
    "Mode",
    "Output",
    "beam_search",
    "mask_predict",
    "remask_counts",
    "trained_modes",
]
