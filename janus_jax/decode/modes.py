"""The modes of decoding by name."""

from collections.abc import Callable

from janus_jax import config
from janus_jax.decode.ar import decode_ar
from janus_jax.decode.infill import decode_infill
from janus_jax.decode.nar import decode_nar
from janus_jax.decode.request import Found, Request
from janus_jax.decode.speculation import decode_speculative

MODES: dict[config.Mode, Callable[[Request], Found]] = {
    "ar": decode_ar,
    "nar": decode_nar,
    "speculative": decode_speculative,
    "infill": decode_infill,
}

# The modes whose rows an objective trains.
TRAINED_MODES: dict[config.Objective, tuple[config.Mode, ...]] = {
    "ar": ("ar",),
    "cmlm": ("nar",),
    "janus": ("ar", "nar", "speculative", "infill"),
}
