"""Length candidates of non-autoregressive decoding: which lengths are tried, and which candidate is chosen.

Legend: B sentences, K length candidates a sentence, T slots (bos and eos counted), C length classes, P passes.
"""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.types import Array, Hypotheses

SHORTEST = 2  # bos and eos


@dataclass(frozen=True)
class MaskPredictRules:
    """Rules in which searches differ: `DEFAULT`, `GAPS` for targets of which a part is fixed, `RELEASED` as in the released code."""

    lengths: Literal["top", "contiguous"] = "top"  # the K most probable lengths, or K around the most probable
    score_edges: bool = False  # average bos and eos into a candidate's score, at 0
    forbid_specials: bool = True  # never emit mask, pad or bos
    end_at_eos: bool = True  # an inner eos ends the sentence
    forbid_eos: bool = False  # never emit eos, so that fixed tokens behind a gap stay
    refuse_empty: bool = True  # a candidate without inner tokens loses to any other
    score_length: bool = True  # the probability of its length counts in a candidate's score
    strip_pads: bool = False  # emitted pads are no tokens: the decoder does not read them, the result drops them

    DEFAULT: ClassVar["MaskPredictRules"]
    GAPS: ClassVar["MaskPredictRules"]
    RELEASED: ClassVar["MaskPredictRules"]


MaskPredictRules.DEFAULT = MaskPredictRules()
MaskPredictRules.GAPS = MaskPredictRules(end_at_eos=False, forbid_eos=True)
MaskPredictRules.RELEASED = MaskPredictRules(
    lengths="contiguous",
    score_edges=True,
    forbid_specials=False,
    end_at_eos=False,
    refuse_empty=False,
    score_length=False,
    strip_pads=True,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trace:
    """Tokens of every pass of a search."""

    tokens: Array  # [P, B, K, T] after the pass filled its slots
    scores: Array  # [P, B, K, T] log-probability of each
    remasked: Array  # [P, B, K, T] bool, slots masked again after the pass


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """Every length candidate of every sentence."""

    tokens: Array  # [B, K, T] int32, bos ... eos, then padding
    lengths: Array  # [B, K] int32, bos and eos counted
    scores: Array  # [B, K] float32, mean log-probability of the filled slots; the best candidate has the largest
    token_scores: Array  # [B, K, T] float32, 0 at bos, eos, padding and fixed tokens
    empty: Array  # [B, K] bool, no inner token
    passes: Array  # [B, K] int32, decoder passes until the candidate was final
    trace: Trace | None


@functools.partial(jax.jit, static_argnames=("pad",))
def merged(candidates: Candidates, *, pad: int) -> Candidates:
    """The candidates without the tokens that equal the one before them, as they are output. Their scores stay."""
    tokens = candidates.tokens
    kept = (tokens != pad) & jnp.pad(
        tokens[..., 1:] != tokens[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=True
    )
    order = jnp.argsort(~kept, axis=-1, stable=True)
    return replace(
        candidates,
        tokens=jnp.take_along_axis(jnp.where(kept, tokens, pad), order, axis=-1),
        lengths=kept.sum(axis=-1, dtype=jnp.int32),
        token_scores=jnp.take_along_axis(jnp.where(kept, candidates.token_scores, 0.0), order, axis=-1),
    )


def candidate_lengths(length_logits: Array, k: int, *, limit: int, rules: MaskPredictRules) -> Array:
    """Target lengths to try, from the length head.

    Args:
      length_logits: [B, C], class = target length with bos and eos.
      k: how many lengths a sentence.
      limit: longest length allowed.
      rules: `lengths` "top" takes the k most probable from 2 to limit, most probable first; "contiguous" takes
        a - k//2 ... around the most probable a, as released: at least 2, so that short lengths repeat.

    Returns:
      [B, k] int32.

    Raises:
      ValueError: fewer than k lengths to choose from.
    """
    classes = jnp.arange(length_logits.shape[-1])
    if rules.lengths == "contiguous":
        best = jnp.maximum(jnp.argmax(length_logits, axis=-1), SHORTEST)
        lengths = best[:, None] - k // 2 + jnp.arange(k)
        return jnp.clip(lengths, SHORTEST, limit).astype(jnp.int32)
    check_length_count(k, limit, length_logits.shape[-1])
    allowed = (classes >= SHORTEST) & (classes <= limit)
    return lax.top_k(jnp.where(allowed, length_logits, -jnp.inf), k)[1].astype(jnp.int32)


def check_length_count(k: int, limit: int, classes: int) -> None:
    """Raises ValueError if a sentence has fewer than k lengths to choose from: at most `limit`, and below C `classes`."""
    choices = min(limit + 1, classes) - SHORTEST
    if k > choices:
        raise ValueError(
            f"length_beam (or draft_lengths): {k} lengths wanted, but only {choices} lie between 2 and {limit}; lower it"
        )


def with_length_scores(candidates: Candidates, length_logits: Array, lengths: Array) -> Candidates:
    """Adds log p(length) to the sum that a candidate's score averages.

    The mean of the tokens alone does not notice what a short candidate leaves out: it prefers a length that drops a
    phrase to the right length with a difficult word. The new score is log p(length, tokens) / tokens.

    Args:
      candidates: of `mask_predict`.
      length_logits: [B, C] of the length head.
      lengths: [B, K] requested lengths, bos and eos counted.
    """
    logp = jnp.take_along_axis(jax.nn.log_softmax(length_logits), lengths, axis=-1)
    inner = jnp.maximum(lengths - 2, 1)
    return replace(candidates, scores=candidates.scores + logp / inner)


def ranking(candidates: Candidates, rules: MaskPredictRules = MaskPredictRules.DEFAULT, count: int = 1) -> Array:
    """Indices [B, count] int32 of each sentence's best candidates, best first; of equal scores the lower index."""
    scores = candidates.scores
    if rules.refuse_empty:
        scores = jnp.where(candidates.empty, -jnp.inf, scores)
    return lax.top_k(scores, min(count, scores.shape[1]))[1].astype(jnp.int32)


def hypotheses_of(candidates: Candidates, pick: Array) -> Hypotheses:
    """Candidates pick [B, n] as Hypotheses [B, n, T-1]: without bos, lengths counting eos."""
    return Hypotheses(
        tokens=jnp.take_along_axis(candidates.tokens, pick[..., None], axis=1)[:, :, 1:],
        lengths=jnp.take_along_axis(candidates.lengths, pick, axis=1) - 1,
        scores=jnp.take_along_axis(candidates.scores, pick, axis=1),
        token_scores=jnp.take_along_axis(candidates.token_scores, pick[..., None], axis=1)[:, :, 1:],
    )


def trace_of(candidates: Candidates, pick: Array) -> Trace | None:
    """The trace of one candidate pick [B] of each sentence, [P, B, T]; None where none was kept."""
    if candidates.trace is None:
        return None
    return jax.tree.map(lambda x: jnp.take_along_axis(x, pick[None, :, None, None], axis=2)[:, :, 0], candidates.trace)
