"""The pytrees that packages pass to each other.

Legend: A micro-batches, B sentences, S source length, T target length (bos and eos counted), M masked tokens at most,
D model width, V vocabulary (padded), C length classes, N hypotheses per sentence, L length of the longest hypothesis.
"""

from dataclasses import dataclass
from typing import Any

import jax

Array = Any  # a jax.Array or numpy.ndarray
Params = dict[str, Any]  # nested dicts of arrays, names one to one with the released ones


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One micro-batch (or A of them, stacked on a leading axis). A row with example_id -1 is empty: all padding."""

    source: Array  # [B, S] int32, bos ... eos, then padding
    target: Array  # [B, T] int32, bos ... eos, then padding
    masked: Array  # [B, M] int32, positions of the masked target tokens, ascending; 0 from index masked_count on
    masked_count: Array  # [B] int32
    example_id: Array  # [B] int32, index in the prepared split
    parallel_target: Array | None = None  # [B, T] int32, the target of all rows but AR's; None: `target`, as for AR

    @property
    def parallel(self) -> Array:
        """The target [B, T] of all rows but the AR rows. `masked` and `masked_count` are places in it."""
        return self.target if self.parallel_target is None else self.parallel_target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """The output of the encoder, which the decoder reads."""

    states: Array  # [B, S, D]
    mask: Array  # [B, S] bool, True at real source tokens
    length_logits: Array  # [B, C] float32, class = target length with bos and eos


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step changes."""

    step: Array  # [] int32, steps done
    params: Params
    opt_state: Any
    ema: Params | None  # moving average of params; None when optimizer.ema_decay is 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hypotheses:
    """Results of a search, best first."""

    tokens: Array  # [B, N, L] int32, no bos; eos ends a hypothesis, padding after it
    lengths: Array  # [B, N] int32, tokens before padding, eos counted; 0: no such hypothesis
    scores: Array  # [B, N] float32, the score of the search
    token_scores: Array  # [B, N, L] float32 log-probability of each token, 0 after the end


@dataclass(frozen=True)
class Specials:
    """Ids of the special tokens. The released checkpoints have no mask token and use unk instead."""

    bos: int = 0
    pad: int = 1
    eos: int = 2
    unk: int = 3
    mask: int = 4
