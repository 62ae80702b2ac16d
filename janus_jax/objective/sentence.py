"""The interface of a family of rows whose loss is the negative log-likelihood of a whole target (CTC, DAG).

`joint.SENTENCE_LOSSES` names these families.

Legend: B sentences, T target length, R rows of the family.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.objective.aligned import Partners
from janus_jax.types import Batch

Scalars = dict[str, jax.Array]


def drawn(eligible: jax.Array, count: jax.Array, rng: jax.Array) -> jax.Array:
    """Flags [B, X] of `count` [B] random places of each sentence, of those that are `eligible` [B, X]; all if fewer are.

    Glancing training draws the rows that are shown their token.
    """
    order = jnp.where(eligible, jax.random.uniform(rng, eligible.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    return eligible & (rank < count[:, None])


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
      shown_tokens: (net, objective, params, rows of a first pass [B, R, D], batch, ratio, rng) -> [B, R] int32 tokens
        that its rows read in glancing training; -1: the usual input.
    """

    in_model: Callable[[ModelConfig], bool]
    count: Callable[[Batch, ModelConfig, int], jax.Array]
    loss: Callable[..., SentenceTerms]
    shown_tokens: Callable[..., jax.Array]
