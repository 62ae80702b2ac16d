"""Searches over the outputs of connectionist temporal classification (CTC).

Every row of a sentence emits a token or the blank. An alignment is one choice a row; its output is what remains when
repeats are merged and blanks dropped, so that a b b - b and a - b - b both read a b b. A prefix here is the output of
the rows so far.

Legend: B sentences, R rows, k tokens offered a row, K prefixes a sentence (the beam), L longest hypothesis (eos
counted). Private functions see one sentence and have no B.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from janus_jax.types import Array, Hypotheses, Specials

_NONE = -jnp.inf  # the log-probability of what cannot be
_NO_TOKEN = -1  # instead of a token, before the first one and at blanks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Emissions:
    """Tokens that every row may emit. Log-probabilities are over vocabulary and blank together; -inf forbids."""

    tokens: Array  # [B, R, k] int32, the k likeliest tokens of each row, all different, the blank not among them
    log_probs: Array  # [B, R, k] float32
    blank: Array  # [B, R] float32
    real: Array  # [B, R] bool, rows that belong to the sentence: the first so many


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Beam:
    """State of the scan over rows: K different prefixes, best first. Of one sentence, without B."""

    tokens: Array  # [K, L] int32, padded
    lengths: Array  # [K] int32
    last: Array  # [K] int32, the last token of each
    blank: Array  # [K] float32, log-probability of all alignments of the prefix that end in a blank
    label: Array  # [K] float32, of those that end in its last token; -inf as well as blank: no such prefix
    begins: Array  # [K, K] bool, prefix i is the beginning of prefix j (or is j itself); False where either is missing


def collapse(emissions: Emissions, *, limit: int, specials: Specials) -> Hypotheses:
    """The output of the likeliest alignment: the best of each row, repeats merged, blanks dropped.

    With blank "-": rows a a - a b -> tokens a a b eos, length 4. Of a token and a blank that tie, the blank counts.

    Args:
      emissions: of B sentences. A sentence without real rows has the empty output, of probability 1.
      limit: L, most tokens of a hypothesis, eos counted; longer outputs are cut.
      specials: ids of the special tokens.

    Returns:
      Hypotheses [B, 1, L]. Scores are the log-probability of the alignment, before any cut; -inf and length 0 if some
      real row can emit nothing. Token scores are the log-probability of the most confident row of each token; 0 at
      eos.

    Raises:
      ValueError: `limit` is below 1, the length of eos.
    """
    _check(1, limit)
    return jax.vmap(lambda sentence: _best_path(sentence, limit, specials))(emissions)


def prefix_beam_search(emissions: Emissions, *, beam: int, limit: int, specials: Specials) -> Hypotheses:
    """The likeliest outputs, each with the probability of all its alignments (Graves 2006; Hannun et al. 2014).

    After each row the K likeliest prefixes stay; alignments through any other are lost, and so are those through
    tokens that a row does not offer or through prefixes of more than L-1 tokens. If nothing is lost the probabilities
    are exact. To be called under `jax.jit`.

    Args:
      emissions: of B sentences. A sentence without real rows has the empty output only, of probability 1.
      beam: K.
      limit: L, most tokens of a hypothesis, eos counted.
      specials: ids of the special tokens.

    Returns:
      Hypotheses [B, K, L], best first; scores are log p(output | emissions), not normalised by length, and -inf with
      length 0 where there are fewer outputs than K. Token scores are all 0: a sum over alignments has no share of
      each token.

    Raises:
      ValueError: an impossible setting.
    """
    _check(beam, limit)
    start = _Beam(
        tokens=jnp.full((beam, limit), specials.pad, jnp.int32),
        lengths=jnp.zeros(beam, jnp.int32),
        last=jnp.full(beam, _NO_TOKEN, jnp.int32),
        # Before the first row there is the empty prefix only, which any token may follow, as after a blank.
        blank=jnp.full(beam, _NONE, jnp.float32).at[0].set(0.0),
        label=jnp.full(beam, _NONE, jnp.float32),
        begins=jnp.zeros((beam, beam), bool).at[0, 0].set(True),
    )

    def search(sentence: Emissions) -> Hypotheses:
        last, _ = lax.scan(lambda s, row: (_after_row(s, row, limit), None), start, sentence)
        return _closed(last.tokens, last.lengths, _total(last), jnp.zeros((beam, limit), jnp.float32), specials)

    return jax.vmap(search)(emissions)


def _check(beam: int, limit: int) -> None:
    if beam < 1 or limit < 1:
        raise ValueError(f"beam {beam} and limit {limit} must be at least 1")


def _best_path(sentence: Emissions, limit: int, specials: Specials) -> Hypotheses:
    best = jnp.argmax(sentence.log_probs, axis=-1)[:, None]
    log_probs = jnp.take_along_axis(sentence.log_probs, best, axis=-1)[:, 0]
    is_label = sentence.real & (log_probs > sentence.blank)
    labels = jnp.where(is_label, jnp.take_along_axis(sentence.tokens, best, axis=-1)[:, 0], _NO_TOKEN)
    is_new = is_label & (labels != jnp.concatenate([jnp.full(1, _NO_TOKEN), labels[:-1]]))
    slots = jnp.where(is_label, jnp.cumsum(is_new) - 1, limit)  # from slot L on nothing is written
    length = jnp.minimum(jnp.sum(is_new, dtype=jnp.int32), limit - 1)
    tokens = jnp.full(limit, specials.pad, jnp.int32).at[slots].set(labels, mode="drop")
    token_scores = jnp.full(limit, _NONE, jnp.float32).at[slots].max(log_probs, mode="drop")
    token_scores = jnp.where(jnp.arange(limit) < length, token_scores, 0.0)
    score = jnp.sum(jnp.where(sentence.real, jnp.maximum(log_probs, sentence.blank), 0.0))
    return _closed(tokens[None], length[None], score[None], token_scores[None], specials)


def _after_row(s: _Beam, row: Emissions, limit: int) -> _Beam:
    """The K best prefixes after one more row (tokens and log_probs [k], blank and real [])."""
    beam, offered = s.last.shape[0], row.tokens.shape[0]
    # Past the end, a blank that is certain moves nothing.
    log_probs = jnp.where(row.real, row.log_probs, _NONE)
    log_blank = jnp.where(row.real, row.blank, 0.0)
    total = _total(s)
    is_last = row.tokens == s.last[:, None]  # [K, k]

    # A prefix grows by a token: by its last one again only after a blank, else the two would be merged.
    grown = jnp.where(is_last, s.blank[:, None], total[:, None]) + log_probs
    grown = jnp.where(s.lengths[:, None] < limit - 1, grown, _NONE)  # [K, k]
    # What grows into another prefix of the beam counts there.
    is_parent = s.begins & (s.lengths[:, None] + 1 == s.lengths)  # [K, K]: prefix i is j without its last token
    is_twin = is_parent[:, :, None] & is_last  # [K, K, k]: prefix i and token c are prefix j
    joining = jnp.max(jnp.where(is_twin, grown[:, None], _NONE), axis=(0, 2))
    grown = jnp.where(jnp.any(is_twin, axis=1), _NONE, grown)

    # A prefix stays as it is, by a blank or by its last token once more.
    blank = total + log_blank
    label = jnp.logaddexp(s.label + jnp.max(jnp.where(is_last, log_probs, _NONE), axis=1), joining)

    scores, chosen = lax.top_k(jnp.concatenate([jnp.logaddexp(blank, label), grown.reshape(-1)]), beam)
    grows = chosen >= beam
    origin = jnp.where(grows, (chosen - beam) // offered, chosen)
    last = jnp.where(grows, row.tokens[(chosen - beam) % offered], s.last[origin])
    lengths = s.lengths[origin] + grows
    tokens = jnp.where(jnp.arange(limit) == lengths[:, None] - 1, last[:, None], s.tokens[origin])
    return _Beam(
        tokens=tokens,
        lengths=lengths,
        last=last,
        blank=jnp.where(grows, _NONE, blank[origin]),
        label=jnp.where(grows, scores, label[origin]),
        begins=_begins(s.begins[origin][:, origin], tokens, lengths, last, scores > _NONE),
    )


def _begins(before: Array, tokens: Array, lengths: Array, last: Array, exists: Array) -> Array:
    """Which prefixes begin which, [K, K], from the same of their origins a row ago.

    Only one token of each pair has to be compared. If i begins j, then i's origin began j's origin: else it would be
    j itself, grown a second time although it is in the beam, and such growth is merged. The other way round, if i's origin
    began j's, then i begins j as soon as j has i's last token in its place.
    """
    agrees = (lengths[:, None] == 0) | (tokens.T[lengths - 1] == last[:, None])
    return before & agrees & (lengths[:, None] <= lengths) & exists[:, None] & exists


def _total(s: _Beam) -> Array:
    return jnp.logaddexp(s.blank, s.label)


def _closed(tokens: Array, lengths: Array, scores: Array, token_scores: Array, specials: Specials) -> Hypotheses:
    """Hypotheses [N, L] of outputs that have no eos yet; those of probability 0 become empty rows."""
    exists = scores > _NONE
    place = jnp.arange(tokens.shape[-1])
    tokens = jnp.where(place == lengths[:, None], specials.eos, tokens)
    within = exists[:, None] & (place <= lengths[:, None])
    return Hypotheses(
        tokens=jnp.where(within, tokens, specials.pad),
        lengths=jnp.where(exists, lengths + 1, 0),
        scores=scores,
        token_scores=jnp.where(within, token_scores, 0.0),
    )
