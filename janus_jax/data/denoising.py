"""Denoising: the noise of BART-JANUS pretraining on a block of text (docs/method.md), in NumPy.

Words are masked in spans. All tokens of a span are masked for the NAR rows of the decoder. The source shows them (a kept
span), or one `<mask>` in their place (a hidden span).

Legend: T tokens of a block (bos and eos counted), W words, M masked tokens, S source tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from janus_jax.config import DataConfig
from janus_jax.data.corruption import span_lengths
from janus_jax.types import Specials


@dataclass(frozen=True)
class NoisedBlock:
    """The training example of a block."""

    source: np.ndarray  # [S <= T] int32, bos ... eos
    masked: np.ndarray  # [M] positions of the masked target tokens, ascending


def max_masked(length: int, ratio: float) -> int:
    """M, the upper bound of masked tokens in a block of `length` tokens.

    The share `ratio` is of words and not of tokens, so that a draw can have more tokens than this bound: about one in a
    hundred at T=128 and one in a thousand at T=512 (1.4 tokens per word). Such a draw loses the spans drawn last.
    """
    return max(1, min(length - 2, math.ceil(ratio * length + 0.5 * math.sqrt(length))))


def noise(
    rng: np.random.Generator,
    block: np.ndarray,
    word_starts: np.ndarray,
    sentences: np.ndarray,
    data: DataConfig,
    specials: Specials,
) -> NoisedBlock:
    """The source and the masked positions of one block.

    Spans of Poisson(data.noise_span) words are drawn until they sum to ceil(data.noise_ratio * W), the last one cut to
    fit. They start at distinct uniform words. A span that runs over the end stops there; where spans overlap, the tokens
    belong to the span that starts later. A span is hidden with probability data.noise_hidden: each unbroken run of its tokens becomes
    one `<mask>`. A span of length zero puts a `<mask>` between any two tokens of the source, as long as the source stays no
    longer than the block. Then sentences may be permuted, and the source may be rotated; bos and eos stay.

    Args:
      rng: the Generator of the example.
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
    return NoisedBlock(source, masked.astype(np.int32))


def _word_positions(block: np.ndarray, word_starts: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """[W] positions at which words start. The first token of a sentence always starts one."""
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
    limit = max_masked(size, data.noise_ratio)
    while _covered(starts, ends, size) > limit:
        if len(starts) == 1:
            ends = starts + limit
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
