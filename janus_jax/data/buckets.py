"""The bucket plan: a few static (S, T) shapes that hold every example with little padding.

Legend: N examples, B rows of a micro-batch, S source length, T target length, M masked tokens at most, A micro-batches
of a step, K buckets.
"""

from dataclasses import dataclass

import numpy as np

from janus_jax.config import DataConfig
from janus_jax.data.corruption import make_sampler
from janus_jax.data.denoising import max_masked
from janus_jax.data.errors import DataError


@dataclass(frozen=True, eq=False)
class Bucket:
    """Examples that share one static shape."""

    source_length: int  # S
    target_length: int  # T
    masked: int  # M
    rows: int  # B
    batches: int  # micro-batches per epoch, a multiple of A
    examples: np.ndarray  # [N of the bucket] int64 ids, ascending

    @property
    def cells(self) -> int:
        """Source and target cells that the bucket's batches of one epoch have, padding included."""
        return self.batches * self.rows * (self.source_length + self.target_length)


def plan(
    source_lengths: np.ndarray, target_lengths: np.ndarray, config: DataConfig, accumulation: int = 1
) -> tuple[Bucket, ...]:
    """Divides examples into buckets by max(S, T) and counts the batches of an epoch.

    `config.buckets` names the bounds, or their number; then they are placed so that the padded cells are fewest.

    Args:
      source_lengths, target_lengths: [N] tokens, bos and eos counted.
      config: batch size, bucket bounds and mask sampler.
      accumulation: A; the batches of a bucket are a multiple of it, so that a step's micro-batches share a shape.

    Raises:
      DataError: there are no examples, an example is longer than the last bound, or a batch cannot hold `batch_multiple` rows.
    """
    if not len(source_lengths):
        raise DataError("no examples to plan batches for; check the split and what was filtered out of it")
    sizes = np.maximum(source_lengths, target_lengths)
    if isinstance(config.buckets, tuple):
        bounds = [bound for bound in config.buckets if bound >= sizes.min()]
        if not bounds or sizes.max() > bounds[-1]:
            raise DataError(
                f"config.data.buckets: the last bound {config.buckets[-1]} is below the longest example ({sizes.max()} tokens); "
                "raise it, or lower data.max_source_length and data.max_target_length and prepare again"
            )
    else:
        bounds = _best_bounds(np.asarray(source_lengths), np.asarray(target_lengths), config.buckets)
    index = np.searchsorted(bounds, sizes)
    members = (np.flatnonzero(index == k) for k in range(len(bounds)))
    return tuple(
        _bucket(ids, int(source_lengths[ids].max()), int(target_lengths[ids].max()), config, accumulation)
        for ids in members
        if len(ids)
    )


def _bucket(ids: np.ndarray, source: int, target: int, config: DataConfig, accumulation: int) -> Bucket:
    multiple = config.batch_multiple
    rows = config.tokens_per_batch // max(source, target) // multiple * multiple
    if not rows:
        raise DataError(
            f"config.data.tokens_per_batch: {config.tokens_per_batch} cannot hold {multiple} rows (data.batch_multiple) of "
            f"{max(source, target)} tokens; raise it to {multiple * max(source, target)}, or lower data.max_source_length and "
            "data.max_target_length and prepare again"
        )
    steps = -(-len(ids) // (rows * accumulation))
    batches = steps * accumulation
    # Fewer rows, if all batches would have empty ones.
    rows = -(-len(ids) // (batches * multiple)) * multiple
    masked = (
        max_masked(target, config.noise_ratio) if config.source == "text" else make_sampler(config).max_masked(target)
    )
    return Bucket(source, target, max(1, masked), rows, batches, ids)


def _best_bounds(source_lengths: np.ndarray, target_lengths: np.ndarray, count: int) -> list[int]:
    """Upper bounds of max(S, T) of at most `count` buckets with the fewest padded cells, by dynamic programming."""
    sizes, group, counts = np.unique(
        np.maximum(source_lengths, target_lengths), return_inverse=True, return_counts=True
    )
    number = len(sizes)
    count = min(count, number)  # a bucket holds at least one size
    longest = np.zeros((2, number), np.int64)
    for side, lengths in enumerate((source_lengths, target_lengths)):
        np.maximum.at(longest[side], group, lengths)
    total = np.concatenate([[0], np.cumsum(counts)])
    best = np.full((count + 1, number + 1), np.inf)  # best[k, j]: cost of the j shortest sizes in k buckets
    best[0, 0] = 0
    cut = np.zeros((count + 1, number + 1), np.int64)
    for end in range(1, number + 1):
        # cost[i]: one bucket for sizes i..end-1; its S and T are the longest among them.
        shape = np.maximum.accumulate(longest[:, :end][:, ::-1], axis=1)[:, ::-1].sum(axis=0)
        cost = (total[end] - total[:end]) * shape
        for k in range(1, min(count, end) + 1):
            candidates = best[k - 1, :end] + cost
            cut[k, end] = int(np.argmin(candidates))
            best[k, end] = candidates[cut[k, end]]
    bounds, end = [], number
    for k in range(int(np.argmin(best[:, number])), 0, -1):
        bounds.append(int(sizes[end - 1]))
        end = cut[k, end]
    return bounds[::-1]
