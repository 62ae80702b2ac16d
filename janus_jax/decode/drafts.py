"""What becomes of a draft: which of its tokens stand, repeats taken out, its rest moved behind what was emitted meanwhile.

The last two can't change an output, only how much of a draft is accepted.

Legend: B sentences, K drafts a sentence, T slots of a draft (bos and eos counted), W drafted tokens looked at, V vocabulary.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from janus_jax.types import Array

REACH = 3  # drafted tokens that may be skipped to find the one that was emitted


@dataclass(frozen=True)
class Acceptance:
    """Which drafted tokens are kept; the default is lossless."""

    top: int = 1  # among AR's so many best tokens
    gap: float = 0.0  # log-probability at most so much below the best

    @property
    def lossless(self) -> bool:
        """Whether outputs are those of greedy search."""
        return self.top <= 1 or self.gap <= 0.0


def accepted(allowed: Array, own: Array, drafted: Array, forced: Array, acceptance: Acceptance) -> Array:
    """[..., W] whether each drafted token stands.

    Args:
      allowed: [..., W, V] logits, -inf at what may not be emitted.
      own: [..., W] int32, what greedy search would emit.
      drafted: [..., W] int32.
      forced: [..., W] bool, nothing but `own` may be emitted.
      acceptance: the rule.
    """
    same = own == drafted
    if acceptance.lossless:
        return same
    logit = jnp.take_along_axis(allowed, drafted[..., None], axis=-1)
    better = jnp.sum(allowed > logit, axis=-1)
    gap = jnp.max(allowed, axis=-1) - logit[..., 0]
    return same | (~forced & (better < acceptance.top) & (gap <= acceptance.gap))


def without_stutter(draft: Array, lengths: Array, emitted: Array) -> tuple[Array, Array]:
    """Takes out drafted tokens that stand right after themselves, as NAR drafts like to and AR output hardly does.

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


def behind(draft: Array, lengths: Array, tokens: Array, emitted: Array, reach: int = REACH) -> tuple[Array, Array]:
    """What is left of a draft, behind what was emitted since.

    The last emitted token may stand a few slots later in the draft: what lies between is skipped. Where it stands
    nowhere near, it takes the place of the token in its slot.

    Args:
      draft, lengths: as in `without_stutter`.
      tokens: [B, 1, T] bos and emitted tokens; what stands behind them means nothing.
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
