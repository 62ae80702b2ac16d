"""The six row groups of the decoder and what each may see (METHOD section 2), as pure functions.

Rows of the joint pass stand in this order, so that every group of queries and of keys is one slice:

    AR query | AR content | CTC | NAR visible+mask | NAR true | AUX query
               `---------------- content: keys ---------------'

Legend: B sentences, S source length, T target length, U AR slots (T-1, or T with an eos start), M masked tokens at most,
R CTC rows, r rank.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.types import Batch, Specials


def ar_inputs(target: jax.Array, config: ModelConfig, specials: Specials) -> jax.Array:
    """Tokens of the AR content rows [B, U]: y_0..y_{T-2}, or eos, y_0..y_{T-2} with BART's shift.

    >>> bos a b eos  ->  bos a b        (ar_start "bos": slot t predicts y_{t+1})
    >>> bos a b eos  ->  eos bos a b    (ar_start "eos": slot t predicts y_t)
    """
    if config.ar_start == "bos":
        return target[:, :-1]
    return jnp.concatenate([jnp.full_like(target[:, :1], specials.eos), target[:, :-1]], axis=1)


def ar_targets(target: jax.Array, config: ModelConfig) -> jax.Array:
    """The token that each AR slot predicts, [B, U]."""
    return target[:, 1:] if config.ar_start == "bos" else target


def ar_slot_positions(slots: jax.Array, config: ModelConfig) -> jax.Array:
    """Position of AR slots: that of the predicted token ("target"), or that of the input token ("input")."""
    return slots + 1 if config.ar_start == "bos" and config.ar_slot_position == "target" else slots


def ar_slot_of(positions: jax.Array, config: ModelConfig) -> jax.Array:
    """The AR slot that predicts the token at a target position."""
    return positions - 1 if config.ar_start == "bos" else positions


def causal_mask(length: int) -> jax.Array:
    """[1, U, U]: slot t sees slots 0..t."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def masked_flags(masked: jax.Array, masked_count: jax.Array, length: int) -> jax.Array:
    """[B, T] True at the masked positions; masked [B, M], masked_count [B]."""
    rank = jnp.arange(masked.shape[1])
    hits = (masked[:, :, None] == jnp.arange(length)) & (rank[:, None] < masked_count[:, None, None])
    return hits.any(axis=1)


def nar_mask(real: jax.Array) -> jax.Array:
    """[B, 1, T]: NAR visible+mask rows see all of their kind; real [B, T] is True at target tokens."""
    return real[:, None]


def bridge_mask(real: jax.Array, masked: jax.Array, masked_count: jax.Array) -> jax.Array:
    """What NAR true rows and AUX query rows see, [B, 2M, T+M]: columns NAR visible+mask, then NAR true.

    A true row of rank r sees visible rows, mask rows of rank > r and true rows of rank <= r; an AUX row of rank r sees
    visible rows, mask rows of rank >= r and true rows of rank < r. Since masked positions ascend with their rank,
    ranks of mask rows are compared by position.
    """
    length = real.shape[1]
    rank = jnp.arange(masked.shape[1])
    is_masked = masked_flags(masked, masked_count, length)[:, None]
    position = jnp.arange(length)
    visible = real[:, None] & ~is_masked
    mask_rows = real[:, None] & is_masked
    true_to_nar = visible | (mask_rows & (position > masked[:, :, None]))
    aux_to_nar = visible | (mask_rows & (position >= masked[:, :, None]))
    real_true = rank < masked_count[:, None, None]
    true_to_true = (rank[:, None] >= rank) & real_true
    aux_to_true = (rank[:, None] > rank) & real_true
    return jnp.concatenate(
        [
            jnp.concatenate([true_to_nar, true_to_true], axis=2),
            jnp.concatenate([aux_to_nar, aux_to_true], axis=2),
        ],
        axis=1,
    )


def gap_mask(
    real: jax.Array, masked: jax.Array, masked_count: jax.Array, asked: jax.Array, fed: jax.Array, slots: jax.Array
) -> jax.Array:
    """What AUX query rows and new NAR true rows see when gaps are filled step by step, [N, 2k, T + M + 1].

    As in `bridge_mask`: columns NAR visible+mask, then the slots of true rows, of which slot t holds rank t - 1 and slot 0
    nothing.

    Args:
      real: [N, T] True at target tokens.
      masked, masked_count: positions of the gaps [N, M] and how many [N].
      asked: [N, k] positions that the query rows ask for.
      fed: [N, k] positions of the true rows.
      slots: [N, k] slots of the true rows; the query row beside slot t has rank t.
    """
    length = real.shape[1]
    is_masked = masked_flags(masked, masked_count, length)[:, None]
    visible, mask_rows = real[:, None] & ~is_masked, real[:, None] & is_masked
    position = jnp.arange(length)
    to_nar = jnp.concatenate(
        [
            visible | (mask_rows & (position >= asked[:, :, None])),
            visible | (mask_rows & (position > fed[:, :, None])),
        ],
        axis=1,
    )
    slot = jnp.arange(masked.shape[1] + 1)
    to_true = jnp.tile((slot > 0) & (slot <= slots[:, :, None]), (1, 2, 1))
    return jnp.concatenate([to_nar, to_true], axis=2)


def nar_tokens(batch: Batch, specials: Specials) -> jax.Array:
    """The target with its masked tokens replaced by mask, [B, T]."""
    flags = masked_flags(batch.masked, batch.masked_count, batch.target.shape[1])
    return jnp.where(flags, specials.mask, batch.target)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sight:
    """Query rows [start, stop) may attend to key rows [first, last) where `mask` [B or 1, R or 1, S] is True."""

    start: int = field(metadata={"static": True})
    stop: int = field(metadata={"static": True})
    first: int = field(metadata={"static": True})
    last: int = field(metadata={"static": True})
    mask: jax.Array


def ctc_counts(source: jax.Array, config: ModelConfig) -> jax.Array:
    """The number of each sentence's own CTC rows; source [..., S] True at real tokens -> [...] int32."""
    table = jnp.array([config.ctc_slots(length) for length in range(source.shape[-1] + 1)], jnp.int32)
    return table[source.sum(axis=-1)]


def ctc_real(source: jax.Array, config: ModelConfig) -> jax.Array:
    """[..., R] True at a sentence's own CTC rows, which come first; source [..., S] True at real tokens."""
    return jnp.arange(config.ctc_slots(source.shape[-1])) < ctc_counts(source, config)[..., None]


def ctc_origins(source: jax.Array, config: ModelConfig) -> jax.Array:
    """The source token [B, R] that each CTC row copies where it reads the source: they are spread evenly."""
    row = jnp.arange(config.ctc_slots(source.shape[1]))
    length, count = source.sum(axis=1, keepdims=True), ctc_counts(source, config)[:, None]
    nth = jnp.minimum(row * length // jnp.maximum(count, 1), jnp.maximum(length - 1, 0))
    return jnp.argmax(source, axis=1)[:, None] + nth  # padding may be on the left


def joint_sights(
    batch: Batch,
    real: jax.Array,
    slots: int,
    streams: tuple[str, ...],
    ar_queries: bool,
    of_ctc: jax.Array | None = None,
) -> tuple:
    """Self-attention of the joint pass, by group; rows absent from `streams` take no place.

    Args:
      batch: one micro-batch; real: [B, T] True at target tokens.
      slots: number U of AR slots.
      streams: of "ar", "ctc", "nar", "aux"; "aux" brings the true rows with it and needs "nar".
      ar_queries: whether AR query rows stand before the content rows.
      of_ctc: [B, R] True at a sentence's own CTC rows.
    """
    sights = []
    row = key = 0
    if "ar" in streams:
        groups = 2 if ar_queries else 1
        mask = jnp.tile(causal_mask(slots), (1, groups, 1))
        sights.append(Sight(0, groups * slots, 0, slots, mask))
        row, key = groups * slots, slots
    if "ctc" in streams:
        rows = of_ctc.shape[1]
        sights.append(Sight(row, row + rows, key, key + rows, nar_mask(of_ctc)))
        row, key = row + rows, key + rows
    if "nar" in streams:
        length, masked = batch.target.shape[1], batch.masked.shape[1]
        sights.append(Sight(row, row + length, key, key + length, nar_mask(real)))
        if "aux" in streams:
            mask = bridge_mask(real, batch.masked, batch.masked_count)
            sights.append(Sight(row + length, row + length + 2 * masked, key, key + length + masked, mask))
    return tuple(sights)


def last_sights(sights: tuple, slots: int, masked: int, streams: tuple[str, ...]) -> tuple:
    """`joint_sights` of the last layer, whose query rows are only those that a loss can read.

    There the query rows are [AR slot rows | CTC rows | mask rows | AUX rows], the key rows as before.
    """
    kept, row = [], 0
    sights = list(sights)
    if "ar" in streams:
        ar = sights.pop(0)
        kept.append(Sight(0, slots, ar.first, ar.last, ar.mask[:, :slots]))
        row = slots
    if "ctc" in streams:
        ctc = sights.pop(0)
        rows = ctc.stop - ctc.start
        kept.append(Sight(row, row + rows, ctc.first, ctc.last, ctc.mask))
        row += rows
    if "nar" in streams:
        nar = sights.pop(0)
        kept.append(Sight(row, row + masked, nar.first, nar.last, nar.mask))
        row += masked
    if "aux" in streams:
        bridge = sights.pop(0)
        kept.append(Sight(row, row + masked, bridge.first, bridge.last, bridge.mask[:, masked:]))
    return tuple(kept)
