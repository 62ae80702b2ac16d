"""Checkpoints: the only caller of Orbax."""

from janus_jax.checkpoint.checksums import checksums
from janus_jax.checkpoint.files import (
    CheckpointError,
    Loaded,
    average,
    checksum,
    config,
    find,
    is_checkpoint,
    load,
    origin,
    step_directories,
    tokenizer,
    write,
)
from janus_jax.checkpoint.run import Checkpoints, best_first, write_error

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Loaded",
    "average",
    "best_first",
    "checksum",
    "checksums",
    "config",
    "find",
    "is_checkpoint",
    "load",
    "origin",
    "step_directories",
    "tokenizer",
    "write",
    "write_error",
]
