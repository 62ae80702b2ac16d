"""Denoising: what BART-JANUS pretraining does to a block of text (METHOD section 6), as NumPy on a given Generator.

Words are masked in spans. All of a span's tokens are masked for the decoder's NAR view; the source shows them (a kept
span) or one `<mask>` in their place (a hidden one).

Legend: T tokens of a block (bos and eos counted), W words, M masked tokens, S source tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from janus_jax.config import DataConfig
from janus_jax.data.corruption import span_lengths
from janus_jax.types import Specials


@dataclass(frozen=True)
class Noised:
    """A block's training example."""

    source: np.ndarray  # [S <= T] int32, bos ... eos
    masked: np.ndarray  # [M] positions of the masked target tokens, ascending


def most_masked(length: int, ratio: float) -> int:
    """M, the tokens that are masked at most in a block of `length` tokens.

    Words and not tokens are counted out, so that a draw can exceed the share `ratio` of the tokens. With this bound about
    one in a hundred does at T=128 and one in a thousand at T=512 (1.4 tokens a word), and loses the spans drawn last.
    """
    return max(1, min(length - 2, math.ceil(ratio * length + 0.5 * math.sqrt(length))))


def noise(
    rng: np.random.Generator,
    block: np.ndarray,
    word_starts: np.ndarray,
    sentences: np.ndarray,
    data: DataConfig,
    specials: Specials,
) -> Noised:
    """The source and the masked positions of one block.

    Spans of Poisson(data.noise_span) words are drawn until they sum to ceil(data.noise_ratio * W), the last one cut to
    fit, and begin at distinct uniform words; one that runs over the end stops there, and where spans overlap the one that
    begins later goes first. A span is hidden with probability data.noise_hidden: each unbroken run of its tokens becomes
    one `<mask>`. A span of length zero puts a `<mask>` between any two tokens of the source, as long as the source stays no
    longer than the block. Then sentences may be permuted, and the source may be rotated; bos and eos stay.

    Args:
      rng: a Generator of the example's own.
      block: [T] int32, bos ... eos.
      word_starts: [V] bool, tokens that begin a word.
      sentences: positions in the block at which sentences start, ascending, the first at 1.
      data: the noise settings.
      specials: of the tokenizer.
    """
    size = len(block)
    words = _word_positions(block, word_starts, sentences)
    starts, ends, inserts = _spans(rng, words, size, data)
    owner = np.full(size, -1)
    for number in np.argsort(starts, kind="stable"):
        owner[starts[number] : ends[number]] = number
    hidden = (rng.random(len(starts)) < data.noise_hidden)[owner] & (owner >= 0)
    masked = np.flatnonzero(owner >= 0)
    # A hidden run is shown as the mask in place of its first token.
    first = hidden & (owner != np.concatenate([[-1], owner[:-1]]))
    tokens = np.where(first, specials.mask, block)
    shown = np.flatnonzero(~hidden | first)[1:-1]
    if rng.random() < data.permute_sentences:
        shown = shown[_permuted(rng, shown, sentences)]
    inner = tokens[shown]
    inserts = min(inserts, size - 2 - len(inner))
    if inserts > 0:
        inner = np.insert(inner, rng.integers(0, len(inner) + 1, inserts), specials.mask)
    if rng.random() < data.rotate:
        inner = np.roll(inner, -int(rng.integers(len(inner))))
    source = np.concatenate([block[:1], inner, block[-1:]]).astype(np.int32)
    return Noised(source, masked.astype(np.int32))


def _word_positions(block: np.ndarray, word_starts: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """[W] positions at which words start. A sentence's first token starts one, whatever it looks like."""
    begins = word_starts[block]
    begins[sentences] = True
    begins[0] = begins[-1] = False
    return np.flatnonzero(begins)


def _spans(
    rng: np.random.Generator, words: np.ndarray, size: int, data: DataConfig
) -> tuple[np.ndarray, np.ndarray, int]:
    """Token ranges [start, end) of the spans, as many as fit into M, and how many have length zero."""
    budget = math.ceil(round(data.noise_ratio * len(words), 9))
    lengths = span_lengths(rng, data.noise_span, budget)
    inserts = int((lengths == 0).sum())
    lengths = lengths[lengths > 0]
    chosen = rng.permutation(len(words))[: len(lengths)]
    bounds = np.append(words, size - 1)
    starts, ends = words[chosen], bounds[np.minimum(chosen + lengths, len(words))]
    most = most_masked(size, data.noise_ratio)
    while _covered(starts, ends, size) > most:
        if len(starts) == 1:
            ends = starts + most
            break
        starts, ends = starts[:-1], ends[:-1]
    return starts, ends, inserts


def _covered(starts: np.ndarray, ends: np.ndarray, size: int) -> int:
    """How many positions lie in any of the ranges [start, end)."""
    edges = np.bincount(starts, minlength=size + 1) - np.bincount(ends, minlength=size + 1)
    return int((np.cumsum(edges) > 0).sum())


def _permuted(rng: np.random.Generator, shown: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """The order in which shown tokens (positions in the block) stand when sentences change places."""
    sentence = np.searchsorted(sentences, shown, side="right")
    rank = rng.permutation(len(sentences) + 1)
    return np.argsort(rank[sentence], kind="stable")
