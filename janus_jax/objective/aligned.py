"""Sets of rows that predict the same token.

Masked positions align AR, NAR and AUX; the best alignment of a target aligns AR with CTC, its best
path AR with DAG. A divergence compares rows at the same place of one set. So a set may be split at any place.

Legend: B sentences, U AR slots, M masked tokens at most, X positions of a set, D model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.families import ar
from janus_jax.model.families.mask_predict import masked_flags
from janus_jax.objective.terms import own_term, term
from janus_jax.types import Batch

NO_TOKEN = -1  # label of a row that predicts no token


@dataclass(frozen=True)
class Aligned:
    """Rows of one or more families; rows at the same place predict the same token."""

    rows: dict[str, jax.Array]  # family -> hidden rows [B, X, D]
    labels: dict[str, jax.Array]  # family -> the token of each row [B, X] int32, or NO_TOKEN


@dataclass(frozen=True)
class Partners:
    """For each AR slot, the row of another family that predicts the same token."""

    rows: jax.Array  # [B, U, D]
    valid: jax.Array  # [B, U] bool, False where a slot has no partner


def aligned_sets(
    hidden: Mapping[str, jax.Array],
    batch: Batch,
    config: ModelConfig,
    pad: int,
    partners: Mapping[str, Partners] | None = None,
) -> list[Aligned]:
    """All rows that have a loss for each token, in sets of rows that predict the same token. No row is in two sets.

    Args:
      hidden: rows of the joint pass, by family.
      batch: one micro-batch.
      config: the architecture.
      pad: id of the padding token.
      partners: family -> partners of the AR slots, for families that have a loss of whole targets.

    Raises:
      ValueError: a family with a loss for each token is in no set.
    """
    partners = partners or {}
    masked = _masked_set(hidden, batch)
    sets = [masked] if masked.rows else []
    if "ar" in hidden:
        if batch.parallel_target is not None:
            # AR rows predict the tokens of another target, so they stand alone.
            sets.append(_slot_set(hidden["ar"], batch, config, pad, {}))
        else:
            slots = _slot_set(hidden["ar"], batch, config, pad, partners)
            sets = _merged(slots, masked, batch, config) if masked.rows else [slots]
    in_sets = {family for one in sets for family in one.rows}
    if missing := [name for name in hidden if name not in in_sets and term(own_term(name)).kind == "token"]:
        raise ValueError(
            f"rows {missing} have a loss for each token, but aligned_sets (objective/aligned.py) puts them in no set"
        )
    return sets


def _masked_set(hidden: Mapping[str, jax.Array], batch: Batch) -> Aligned:
    """The NAR and AUX rows of the masked positions, from left to right: X = M."""
    rows = {name: hidden[name] for name in ("nar", "aux") if name in hidden}
    real = jnp.arange(batch.masked.shape[1]) < batch.masked_count[:, None]
    labels = jnp.where(real, jnp.take_along_axis(batch.parallel, batch.masked, axis=1), NO_TOKEN)
    return Aligned(rows, dict.fromkeys(rows, labels))


def _slot_set(
    rows: jax.Array, batch: Batch, config: ModelConfig, pad: int, partners: Mapping[str, Partners]
) -> Aligned:
    """The rows of the AR slots, and their partners: X = U."""
    tokens = ar.targets(batch.target, config)
    tokens = jnp.where(tokens == pad, NO_TOKEN, tokens)
    partner_labels = {name: jnp.where(partner.valid, tokens, NO_TOKEN) for name, partner in partners.items()}
    return Aligned(
        {"ar": rows} | {name: partner.rows for name, partner in partners.items()}, {"ar": tokens} | partner_labels
    )


def _merged(slots: Aligned, masked: Aligned, batch: Batch, config: ModelConfig) -> list[Aligned]:
    """Two sets: the masked positions with their AR slots, and the other AR slots if there are more slots than M."""
    count, places = slots.labels["ar"].shape[1], batch.masked.shape[1]
    flags = masked_flags(ar.slot_of(batch.masked, config), batch.masked_count, count)
    order = jnp.argsort(~flags, axis=1, stable=True)  # the slots of masked tokens first, from left to right
    padding = max(places - count, 0)
    rows, labels = {}, {}
    for name in slots.rows:
        rows[name] = jnp.pad(_permuted(slots.rows[name], order), ((0, 0), (0, padding), (0, 0)))
        ordered = jnp.take_along_axis(slots.labels[name], order, axis=1)
        labels[name] = jnp.pad(ordered, ((0, 0), (0, padding)), constant_values=NO_TOKEN)
    at_masks = Aligned(
        masked.rows | {name: x[:, :places] for name, x in rows.items()},
        masked.labels | {name: x[:, :places] for name, x in labels.items()},
    )
    if count <= places:
        return [at_masks]
    rest = Aligned(
        {name: x[:, places:] for name, x in rows.items()}, {name: x[:, places:] for name, x in labels.items()}
    )
    return [at_masks, rest]


@jax.custom_vjp
def _permuted(x: jax.Array, order: jax.Array) -> jax.Array:
    """Permutes the rows of x [B, U, D] by `order` [B, U]. The gradient is a permutation too, instead of a scatter."""
    return jnp.take_along_axis(x, order[:, :, None], axis=1)


def _permuted_forward(x: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _permuted(x, order), order


def _permuted_backward(order: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _permuted(gradient, jnp.argsort(order, axis=1)), None


_permuted.defvjp(_permuted_forward, _permuted_backward)
