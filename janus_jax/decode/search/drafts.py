"""Operations on drafts: which tokens are accepted, removal of repeats, alignment of the rest with the emitted tokens.

Removal and alignment cannot change an output; they change how many drafted tokens are accepted.

Legend: B sentences, K drafts a sentence, T slots of a draft (bos and eos counted), W drafted tokens looked at, V vocabulary.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from janus_jax.types import Array

REACH = 3  # drafted tokens that may be skipped to find the one that was emitted


@dataclass(frozen=True)
class Acceptance:
    """Rule by which drafted tokens are accepted; the default is lossless."""

    top: int = 1  # the token is among the so many best ones of the verifier
    gap: float = 0.0  # and its log-probability is at most so much below the best one's

    @property
    def lossless(self) -> bool:
        """Whether outputs are those of greedy search."""
        return self.top <= 1 or self.gap <= 0.0


def accepted(allowed: Array, greedy: Array, drafted: Array, forced: Array, acceptance: Acceptance) -> Array:
    """Whether each drafted token is accepted, [..., W] bool.

    Args:
      allowed: [..., W, V] logits, -inf at tokens that may not be emitted.
      greedy: [..., W] int32, tokens that greedy search would emit.
      drafted: [..., W] int32.
      forced: [..., W] bool, only the greedy token may be emitted.
      acceptance: the rule.
    """
    same = greedy == drafted
    if acceptance.lossless:
        return same
    logit = jnp.take_along_axis(allowed, drafted[..., None], axis=-1)
    better = jnp.sum(allowed > logit, axis=-1)
    gap = jnp.max(allowed, axis=-1) - logit[..., 0]
    return same | (~forced & (better < acceptance.top) & (gap <= acceptance.gap))


def without_stutter(draft: Array, lengths: Array, emitted: Array) -> tuple[Array, Array]:
    """Removes drafted tokens that equal the one before them: frequent in NAR drafts, rare in AR output.

    Args:
      draft: [B, K, T] int32: bos, emitted tokens, drafted tokens, eos, padding.
      lengths: [B, K] int32, bos and eos counted.
      emitted: [B] int32, tokens emitted; slot `emitted` holds the last of them (bos when there is none).

    Returns:
      The draft and its lengths.
    """
    slot = jnp.arange(draft.shape[-1])
    before = jnp.pad(draft, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    kept = (draft != before) | (slot <= emitted[:, None, None]) | (slot >= lengths[..., None])
    order = jnp.argsort(~kept, axis=-1, stable=True)
    return jnp.take_along_axis(draft, order, axis=-1).astype(jnp.int32), (lengths - (~kept).sum(axis=-1)).astype(
        jnp.int32
    )


def realign(draft: Array, lengths: Array, tokens: Array, emitted: Array, reach: int = REACH) -> tuple[Array, Array]:
    """Moves the rest of a draft behind the tokens that were emitted since it was made.

    If the last emitted token stands a few slots later in the draft, the tokens between are skipped. Otherwise it
    replaces the drafted token in its slot.

    Args:
      draft, lengths: as in `without_stutter`.
      tokens: [B, 1, T] bos and emitted tokens; slots behind them are not read.
      emitted: [B] int32, tokens emitted.
      reach: how many slots may be skipped.

    Returns:
      The draft and its lengths.
    """
    slots = draft.shape[-1]
    at = emitted[:, None, None]
    near = jnp.broadcast_to(jnp.minimum(at + jnp.arange(reach + 1), slots - 1), (*lengths.shape, reach + 1))
    last = jnp.take_along_axis(tokens, jnp.minimum(at, slots - 1), axis=2)
    same = jnp.take_along_axis(draft, near, axis=2) == last
    skip = jnp.where(same.any(axis=-1), jnp.argmax(same, axis=-1), 0)
    slot = jnp.arange(slots)
    moved = jnp.take_along_axis(draft, jnp.minimum(slot + skip[..., None], slots - 1), axis=2)
    return jnp.where(slot <= at, tokens, moved).astype(jnp.int32), (lengths - skip).astype(jnp.int32)
