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

# What must have been trained for a mode: loss terms. Without a length head no output's length is known.
_NEEDED: dict[config.Mode, frozenset[str]] = {
    "ar": frozenset({"ar"}),
    "nar": frozenset({"nar", "length"}),
    "speculative": frozenset({"ar", "nar", "length"}),
    "infill": frozenset({"nar", "aux"}),
}


def trained_modes(objective: config.ObjectiveConfig) -> tuple[config.Mode, ...]:
    """The modes that an objective trains."""
    terms = set(config.objective_terms(objective))
    return tuple(mode for mode, needed in _NEEDED.items() if needed <= terms)
