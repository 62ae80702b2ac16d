"""The training loop."""

from janus_jax.train.loop import NonFiniteLossError, resolve_with_data, train

__all__ = ["NonFiniteLossError", "resolve_with_data", "train"]
