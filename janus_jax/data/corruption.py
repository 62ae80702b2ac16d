"""Which target tokens are masked: samplers on explicit random numbers, vectorised over the rows of a batch.

A sampler is a pure function of uniform random numbers, so that the mask of a row depends on the numbers of that row alone
and never on the other rows of the batch. docs/method.md describes the span sampler.

Legend: B rows, T target length (bos and eos counted), W random numbers per row, M masked tokens.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from janus_jax.config import DataConfig

_TAIL = 1e-7  # Poisson lengths rarer than this are cut off


@functools.lru_cache(maxsize=16)
def _span_cdf(mean: float) -> np.ndarray:
    """Cumulative probabilities of span lengths 0, 1, ...: Poisson, its upper tail cut off, renormalised."""
    probabilities = []
    length = 0
    while True:
        p = math.exp(length * math.log(mean) - mean - math.lgamma(length + 1))
        # Below the mode small probabilities are the lower tail, not the end.
        if p < _TAIL and length > mean:
            break
        probabilities.append(p)
        length += 1
    cdf = np.cumsum(probabilities)
    return cdf / cdf[-1]


def span_lengths(rng: np.random.Generator, mean: float, budget: int) -> np.ndarray:
    """Lengths of Poisson(mean) spans, drawn until they sum to `budget`, the last one cut to fit; some may be zero.

    Raises:
      ValueError: a budget below 1.
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

    Spans of Poisson(mean) length until they sum to ceil(ratio * T), the last one cut to fit; distinct uniform starts
    over all T positions; a span that would run over the end has length 1; one of length zero uses up its start; bos and
    eos are spared. Where that masks no token although there is one between bos and eos, a uniform one is masked.

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
    # Lengths of spans: a row's first T numbers. Only T spans can have a start, so that no more are needed.
    spans = np.searchsorted(_span_cdf(mean), uniforms[:, :width], side="right")
    spans = np.where(real, spans, 0)
    before = np.cumsum(spans, axis=1) - spans
    spans = np.clip(_span_budget(lengths, ratio) - before, 0, spans)
    # Starts: the order of the next T numbers is a uniform permutation of the T positions.
    keys = np.take_along_axis(uniforms, np.minimum(lengths + column, uniforms.shape[1] - 1), axis=1)
    starts = np.argsort(np.where(real, keys, 2.0), axis=1)
    spans = np.where(starts + spans > lengths, np.minimum(spans, 1), spans)
    # Union of spans: +1 where one starts, -1 where one ends, running sum.
    edges = np.zeros((rows, width + 1), np.int64)
    np.put_along_axis(edges, starts, (spans > 0).astype(np.int64), axis=1)
    row = np.broadcast_to(np.arange(rows)[:, None], spans.shape)[spans > 0]
    np.subtract.at(edges, (row, (starts + spans)[spans > 0]), 1)
    mask = np.cumsum(edges[:, :width], axis=1) > 0
    inner = (column > 0) & (column < lengths - 1)
    mask &= inner
    last = np.take_along_axis(uniforms, 2 * lengths, axis=1)
    rescue = 1 + (last * (lengths - 2)).astype(np.int64)
    return mask | (~mask.any(axis=1, keepdims=True) & inner & (column == rescue))


def uniform_masks(uniforms: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Masks of whole batches by CMLM's sampler: a uniform number 1..T-2 of tokens, uniformly chosen, bos and eos spared.

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
    """Masks of all tokens behind a prefix, as in drafting; bos and eos are never masked.

    Of n inner tokens floor(n u^2) are kept, so that short prefixes, and none at all, are the most frequent.

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
    # The union of spans is never larger than their sum, which the cut holds at ceil(ratio * T) (shortening a span at the
    # end lowers it), and only T - 2 positions are not bos or eos. Both bounds are reached (spans of length 1 at positions
    # 1, 2, ...; all starts distinct), so no smaller number would do. A rescued row masks one token.
    return Sampler(
        uniforms=lambda length: 2 * length + 1,
        masks=lambda uniforms, lengths: span_masks(uniforms, lengths, ratio, mean),
        max_masked=lambda length: min(max(1, int(_span_budget(length, ratio))), max(0, length - 2)),
    )


def _uniform_sampler(_ratio: float, _mean: float) -> Sampler:
    # All T - 2 inner tokens are a possible draw.
    return Sampler(
        uniforms=lambda length: length + 1, masks=uniform_masks, max_masked=lambda length: max(0, length - 2)
    )


SAMPLERS: dict[str, Callable[[float, float], Sampler]] = {"span": _span_sampler, "uniform": _uniform_sampler}


def make_sampler(data: DataConfig) -> Sampler:
    """The sampler of a configuration. In a share `mask_suffix` of the rows it masks a suffix instead."""
    chosen = SAMPLERS[data.mask_sampler](data.mask_ratio, data.mask_span)
    if not data.mask_suffix:
        return chosen

    def masks(uniforms: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        lengths = np.asarray(lengths, np.int64)
        # Two numbers behind those of the chosen sampler, so that `mask_suffix` does not change the masks of the other rows.
        at = np.array([chosen.uniforms(length) for length in lengths.tolist()])[:, None]
        which, where = (np.take_along_axis(uniforms, at + i, axis=1)[:, 0] for i in range(2))
        return np.where(
            (which < data.mask_suffix)[:, None], suffix_masks(where, lengths), chosen.masks(uniforms, lengths)
        )

    return Sampler(
        uniforms=lambda length: chosen.uniforms(length) + 2, masks=masks, max_masked=lambda length: max(0, length - 2)
    )


def mask_positions(masks: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks as positions.

    Args:
      masks: [B, T] bool.
      width: M, at least the number of masked tokens of every row.

    Returns:
      positions [B, M] int32, ascending, 0 past a row's count; counts [B] int32.
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
      seed, epoch: whole numbers, taken modulo 2**64.
      example_ids: [B] ids, not negative.
      lengths: [B] target lengths, which say how many numbers a row needs.
      numbers: target length -> how many numbers its row needs (`Sampler.uniforms`).

    Returns:
      [B, W] float64 in [0, 1), zeros past the numbers of a row.
    """
    uniforms = np.zeros((len(lengths), numbers(int(lengths.max(initial=1)))))
    for row, (generator, length) in enumerate(
        zip(row_generators(seed, epoch, example_ids), lengths.tolist(), strict=True)
    ):
        generator.random(out=uniforms[row, : numbers(length)])
    return uniforms


def row_generators(seed: int, epoch: int, example_ids: np.ndarray) -> Iterator[np.random.Generator]:
    """A Generator for each row in turn: Philox with key (seed, epoch) and a counter that starts at the example's id.

    All rows share one object, which is reset for each row: use it before asking for the next.

    Args:
      seed, epoch: whole numbers, taken modulo 2**64.
      example_ids: [B] ids, not negative.
    """
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch % 2**64], np.uint64))
    generator = np.random.Generator(bits)
    state = bits.state
    for example_id in example_ids.tolist():
        # The counter's highest word holds the id, so that streams of two examples never meet. Setting the state is five
        # times faster than building a Generator per row, and gives the same numbers.
        state["state"]["counter"] = np.array([0, 0, 0, example_id], np.uint64)
        bits.state = state
        yield generator
