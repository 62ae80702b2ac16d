"""From text to batches."""

from janus_jax.data.errors import DataError
from janus_jax.data.identity import adopt
from janus_jax.data.pipeline import TrainBatches, eval_batches, train_batches
from janus_jax.data.prepare import prepare
from janus_jax.data.retarget import Readers, check_one_target, retarget
from janus_jax.data.store import Prepared, PreparedSplit

__all__ = [
    "DataError",
    "Prepared",
    "PreparedSplit",
    "Readers",
    "TrainBatches",
    "adopt",
    "check_one_target",
    "eval_batches",
    "prepare",
    "retarget",
    "train_batches",
]
