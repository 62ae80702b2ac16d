"""Samplers that choose the masked target tokens, vectorised over the rows of a batch (docs/method.md, section 4).

A sampler is a pure function of explicit uniform random numbers. So the mask of a row depends on the numbers of that row
alone, and never on the other rows of the batch.

Legend: B rows, T target length (bos and eos counted), W random numbers per row, M masked tokens.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from janus_jax.config import DataConfig

_TAIL = 1e-7  # longer Poisson lengths with a probability below this are cut off


@functools.lru_cache(maxsize=16)
def _span_cdf(mean: float) -> np.ndarray:
    """Cumulative probabilities of span lengths 0, 1, ...: Poisson, its upper tail cut off, renormalised."""
    probabilities = []
    length = 0
    while True:
        p = math.exp(length * math.log(mean) - mean - math.lgamma(length + 1))
        # A small probability below the mean belongs to the lower tail and does not end the loop.
        if p < _TAIL and length > mean:
            break
        probabilities.append(p)
        length += 1
    cdf = np.cumsum(probabilities)
    return cdf / cdf[-1]


def span_lengths(rng: np.random.Generator, mean: float, budget: int) -> np.ndarray:
    """Lengths of Poisson(mean) spans, drawn until they sum to `budget`, the last one cut to fit; some may be zero.

    Raises:
      ValueError: the budget is below 1.
    """
    if budget < 1:
        raise ValueError(f"budget {budget}: nothing to mask")
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < budget:
        more = np.searchsorted(_span_cdf(mean), rng.random(budget), side="right")
        lengths = np.concatenate([lengths, more])
    total = np.cumsum(lengths)
    last = int(np.searchsorted(total, budget))
    lengths = lengths[: last + 1]
    lengths[-1] -= total[last] - budget
    return lengths


def _span_budget(length: np.ndarray | int, ratio: float) -> np.ndarray:
    """ceil(ratio * T), robust to the binary form of ratio (0.55 * 100 is 55.00000000000001 in floats)."""
    return np.ceil(np.round(np.asarray(length) * ratio, 9)).astype(np.int64)


def span_masks(uniforms: np.ndarray, lengths: np.ndarray, ratio: float, mean: float) -> np.ndarray:
    """Masks of whole batches by the span sampler.

    Span lengths are drawn from Poisson(mean) until they sum to ceil(ratio * T), at most T of them; the last one is cut to
    fit. Starts are distinct and uniform over all T positions. A span that would run over the end gets length 1. A span of
    length 0 uses its start up and masks nothing. Bos and eos are never masked. If this masks none of the inner tokens (those between
    bos and eos), one of them, chosen uniformly, is masked.

    Args:
      uniforms: [B, W >= 2 * max(lengths) + 1] in [0, 1); row b uses its first 2 * lengths[b] + 1.
      lengths: [B] target lengths.
      ratio: share of T that the spans sum to.
      mean: mean span length.

    Returns:
      [B, max(lengths)] bool, True where masked.
    """
    rows, width = len(lengths), int(lengths.max(initial=1))
    lengths = np.asarray(lengths, np.int64)[:, None]
    column = np.arange(width)
    real = column < lengths
    # The first T numbers of a row give span lengths. There are only T starts, so T lengths are enough.
    spans = np.searchsorted(_span_cdf(mean), uniforms[:, :width], side="right")
    spans = np.where(real, spans, 0)
    sum_before = np.cumsum(spans, axis=1) - spans
    spans = np.clip(_span_budget(lengths, ratio) - sum_before, 0, spans)
    # The next T numbers give starts: their sort order is a uniform permutation of the T positions.
    keys = np.take_along_axis(uniforms, np.minimum(lengths + column, uniforms.shape[1] - 1), axis=1)
    starts = np.argsort(np.where(real, keys, 2.0), axis=1)
    spans = np.where(starts + spans > lengths, np.minimum(spans, 1), spans)
    # The union of spans: the running sum of +1 at each start and -1 after each end is positive.
    edges = np.zeros((rows, width + 1), np.int64)
    np.put_along_axis(edges, starts, (spans > 0).astype(np.int64), axis=1)
    row = np.broadcast_to(np.arange(rows)[:, None], spans.shape)[spans > 0]
    np.subtract.at(edges, (row, (starts + spans)[spans > 0]), 1)
    mask = np.cumsum(edges[:, :width], axis=1) > 0
    inner = (column > 0) & (column < lengths - 1)
    mask &= inner
    last_number = np.take_along_axis(uniforms, 2 * lengths, axis=1)
    rescue = 1 + (last_number * (lengths - 2)).astype(np.int64)
    return mask | (~mask.any(axis=1, keepdims=True) & inner & (column == rescue))


def uniform_masks(uniforms: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Masks of whole batches by CMLM's sampler.

    The number of masked tokens is uniform in 1..T-2. They are chosen uniformly; bos and eos are never masked.

    Args:
      uniforms: [B, W >= max(lengths) + 1] in [0, 1); row b uses its first lengths[b] + 1.
      lengths: [B] target lengths.

    Returns:
      [B, max(lengths)] bool, True where masked.
    """
    width = int(lengths.max(initial=1))
    lengths = np.asarray(lengths, np.int64)[:, None]
    column = np.arange(width)
    inner = (column > 0) & (column < lengths - 1)
    count = 1 + (uniforms[:, :1] * (lengths - 2)).astype(np.int64)
    keys = np.where(inner, uniforms[:, 1 : width + 1], 2.0)
    rank = np.argsort(np.argsort(keys, axis=1), axis=1)
    return inner & (rank < count)


def suffix_masks(uniforms: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Masks of all tokens after a prefix, as in speculative decoding; bos and eos are never masked.

    The prefix has floor(n u^2) of the n inner tokens. So short and empty prefixes are the most frequent.

    Args:
      uniforms: [B] in [0, 1).
      lengths: [B] target lengths.

    Returns:
      [B, max(lengths)] bool, True where masked.
    """
    lengths = np.asarray(lengths, np.int64)[:, None]
    column = np.arange(int(lengths.max(initial=1)))
    kept = (uniforms[:, None] ** 2 * (lengths - 2)).astype(np.int64)
    return (column > kept) & (column < lengths - 1)


def span_mask(rng: np.random.Generator, length: int, ratio: float, mean: float) -> np.ndarray:
    """Sorted positions [M] that the span sampler masks in one target of `length` tokens (bos and eos counted)."""
    uniforms = rng.random((1, 2 * length + 1))
    return np.flatnonzero(span_masks(uniforms, np.array([length]), ratio, mean)[0])


def uniform_mask(rng: np.random.Generator, length: int) -> np.ndarray:
    """Sorted positions [M] that CMLM's sampler masks in one target of `length` tokens (bos and eos counted)."""
    return np.flatnonzero(uniform_masks(rng.random((1, length + 1)), np.array([length]))[0])


@dataclass(frozen=True)
class Sampler:
    """A way to choose masked tokens."""

    uniforms: Callable[[int], int]  # target length -> how many uniform random numbers its row needs
    masks: Callable[[np.ndarray, np.ndarray], np.ndarray]  # uniforms [B, W], lengths [B] -> [B, T] bool
    max_masked: Callable[[int], int]  # target length -> upper bound of masked tokens; grows with the length


def _span_sampler(ratio: float, mean: float) -> Sampler:
    # The union of spans is at most their sum, and the sum is at most ceil(ratio * T): the last span is cut, and a span
    # at the end of the target only gets shorter. There are only T - 2 inner tokens. Both bounds are reached, for
    # example by spans of length 1 at positions 1, 2, ..., so no smaller bound holds. If no span masks a token, one
    # token is masked.
    return Sampler(
        uniforms=lambda length: 2 * length + 1,
        masks=lambda uniforms, lengths: span_masks(uniforms, lengths, ratio, mean),
        max_masked=lambda length: min(max(1, int(_span_budget(length, ratio))), max(0, length - 2)),
    )


def _uniform_sampler(_ratio: float, _mean: float) -> Sampler:
    # The sampler may mask all T - 2 inner tokens.
    return Sampler(
        uniforms=lambda length: length + 1, masks=uniform_masks, max_masked=lambda length: max(0, length - 2)
    )


SAMPLERS: dict[str, Callable[[float, float], Sampler]] = {"span": _span_sampler, "uniform": _uniform_sampler}


def make_sampler(data: DataConfig) -> Sampler:
    """The sampler of a configuration. A fraction `mask_suffix` of the rows gets a masked suffix instead."""
    base = SAMPLERS[data.mask_sampler](data.mask_ratio, data.mask_span)
    if not data.mask_suffix:
        return base

    def masks(uniforms: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        lengths = np.asarray(lengths, np.int64)
        # Two more numbers follow those of the base sampler, so that `mask_suffix` changes no mask of other rows.
        offsets = np.array([base.uniforms(length) for length in lengths.tolist()])[:, None]
        choice, prefix = (np.take_along_axis(uniforms, offsets + i, axis=1)[:, 0] for i in range(2))
        return np.where(
            (choice < data.mask_suffix)[:, None], suffix_masks(prefix, lengths), base.masks(uniforms, lengths)
        )

    return Sampler(
        uniforms=lambda length: base.uniforms(length) + 2, masks=masks, max_masked=lambda length: max(0, length - 2)
    )


def mask_positions(masks: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Converts masks to positions.

    Args:
      masks: [B, T] bool.
      width: M, at least the number of masked tokens of every row.

    Returns:
      positions [B, M] int32, ascending, 0 from index counts[b] on; counts [B] int32.
    """
    counts = masks.sum(axis=1, dtype=np.int32)
    rows, columns = np.nonzero(masks)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.zeros((len(masks), width), np.int32)
    positions[rows, rank] = columns
    return positions, counts


def row_uniforms(
    seed: int, epoch: int, example_ids: np.ndarray, lengths: np.ndarray, numbers: Callable[[int], int]
) -> np.ndarray:
    """The random numbers of each row, see `row_generators`.

    Args:
      seed, epoch: integers, taken modulo 2**64.
      example_ids: [B] ids, not negative.
      lengths: [B] target lengths, which say how many numbers a row needs.
      numbers: target length -> how many numbers its row needs (`Sampler.uniforms`).

    Returns:
      [B, W] float64 in [0, 1), zero after the numbers that a row needs.
    """
    uniforms = np.zeros((len(lengths), numbers(int(lengths.max(initial=1)))))
    for row, (generator, length) in enumerate(
        zip(row_generators(seed, epoch, example_ids), lengths.tolist(), strict=True)
    ):
        generator.random(out=uniforms[row, : numbers(length)])
    return uniforms


def row_generators(seed: int, epoch: int, example_ids: np.ndarray) -> Iterator[np.random.Generator]:
    """A Generator for each row in turn: Philox with key (seed, epoch) and a counter that starts at the example's id.

    All rows share one object, which is reset for each row: use it before you take the next one.

    Args:
      seed, epoch: integers, taken modulo 2**64.
      example_ids: [B] ids, not negative.
    """
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch % 2**64], np.uint64))
    generator = np.random.Generator(bits)
    state = bits.state
    for example_id in example_ids.tolist():
        # The counter's highest word holds the id, so the streams of two examples never overlap. Setting the state is
        # five times faster than building a Generator per row, and gives the same numbers.
        state["state"]["counter"] = np.array([0, 0, 0, example_id], np.uint64)
        bits.state = state
        yield generator
