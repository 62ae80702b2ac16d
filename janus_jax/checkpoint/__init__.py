"""Checkpoints: the only caller of Orbax."""

from janus_jax.checkpoint.files import (
    CheckpointError,
    Loaded,
    average,
    find,
    is_checkpoint,
    load,
    step_directories,
    tokenizer,
    write,
)
from janus_jax.checkpoint.run import Checkpoints, unwritable

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Loaded",
    "average",
    "find",
    "is_checkpoint",
    "load",
    "step_directories",
    "tokenizer",
    "unwritable",
    "write",
]
