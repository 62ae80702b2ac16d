"""The modes of decoding by name."""

from collections.abc import Callable

from janus_jax import config
from janus_jax.decode.ar import decode_ar
from janus_jax.decode.ctc import decode_ctc
from janus_jax.decode.infill import decode_infill
from janus_jax.decode.nar import decode_nar
from janus_jax.decode.request import Found, Request
from janus_jax.decode.speculation import decode_speculative

MODES: dict[config.Mode, Callable[[Request], Found]] = {
    "ar": decode_ar,
    "nar": decode_nar,
    "ctc": decode_ctc,
    "speculative": decode_speculative,
    "infill": decode_infill,
}

# What must have been trained for a mode: one of these sets of loss terms. Mask-predict needs a length head.
_NEEDED: dict[config.Mode, tuple[frozenset[str], ...]] = {
    "ar": (frozenset({"ar"}),),
    "nar": (frozenset({"nar", "length"}),),
    "ctc": (frozenset({"ctc"}),),
    "speculative": (frozenset({"ar", "nar", "length"}), frozenset({"ar", "ctc"})),
    "infill": (frozenset({"nar", "aux"}),),
}


def trained_modes(objective: config.ObjectiveConfig) -> tuple[config.Mode, ...]:
    """The modes that an objective trains."""
    terms = set(config.objective_terms(objective))
    return tuple(mode for mode, needed in _NEEDED.items() if any(one <= terms for one in needed))
