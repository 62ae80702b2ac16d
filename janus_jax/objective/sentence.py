"""What a family of rows with a likelihood of whole targets brings to the loss (CTC; the registry is in `joint.py`)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax

from janus_jax.config import ModelConfig
from janus_jax.objective.aligned import Partners
from janus_jax.types import Batch

Scalars = dict[str, jax.Array]


@dataclass(frozen=True)
class SentenceTerms:
    """The terms of one family for a micro-batch."""

    values: Scalars  # term -> its sum, divided
    metrics: Scalars  # for the log
    partners: dict[str, Partners] = field(default_factory=dict)  # the family's rows beside the AR slots, to be matched


@dataclass(frozen=True)
class SentenceLoss:
    """The functions of one family.

    Attributes:
      in_model: whether a model has such rows.
      count: (batch [..., B, T], config, pad) -> [] the target tokens that the family's terms are divided by.
      loss: (net, objective, terms, hidden rows by family, token table, batch, divisors) -> `SentenceTerms`.
      shown_tokens: (net, objective, params, encoded, batch, ratio, rng) -> [B, R] what glancing training shows its rows.
    """

    in_model: Callable[[ModelConfig], bool]
    count: Callable[[Batch, ModelConfig, int], jax.Array]
    loss: Callable[..., SentenceTerms]
    shown_tokens: Callable[..., jax.Array]
