"""The interface of a family of rows whose loss is the negative log-likelihood of a whole target (CTC, DAG).

`joint.SENTENCE_LOSSES` names these families.

Legend: B sentences, T target length, R rows of the family.
"""

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

    values: Scalars  # term -> its sum over the micro-batch, divided by its divisor
    metrics: Scalars  # for the log
    partners: dict[str, Partners] = field(default_factory=dict)  # family -> partners of the AR slots, for divergences


@dataclass(frozen=True)
class SentenceLoss:
    """The functions of one family.

    Attributes:
      in_model: config -> whether a model has rows of the family.
      count: (batch [..., B, T], config, pad) -> [] number of target tokens, by which the family's terms are divided.
      loss: (net, objective, params, terms, hidden rows by family, batch, divisors) -> `SentenceTerms`.
      shown_tokens: (net, objective, params, encoded, batch, ratio, rng) -> [B, R] int32 tokens that its
        rows read in glancing training; -1: the usual input.
    """

    in_model: Callable[[ModelConfig], bool]
    count: Callable[[Batch, ModelConfig, int], jax.Array]
    loss: Callable[..., SentenceTerms]
    shown_tokens: Callable[..., jax.Array]
