"""How sentences are grouped into decoding batches of few shapes, so that little is compiled and little is padding.

Legend: B sentences of a batch, S padded source length.
"""

from collections.abc import Sequence

import numpy as np


def bucket(length: int, *, at_least: int = 16, halves: bool = False) -> int:
    """The padded length of `length` tokens: a power of two, or with `halves` also 1.5 times one."""
    size = at_least
    while size < length:
        if halves and size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def full_rows(length: int, batch_tokens: int, hypotheses: int, ways: int = 1) -> int:
    """Sentences of a full batch: for each of `ways` devices a multiple of 8, or below 8 a power of two; at least one."""
    rows = max(batch_tokens // (length * hypotheses * ways), 1)
    return ways * (rows // 8 * 8 if rows >= 8 else 1 << (rows.bit_length() - 1))


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, hypotheses: int, ways: int = 1
) -> list[tuple[int, int, list[int]]]:
    """Groups sentences by length.

    What does not fill a batch of its bucket moves up into the next bucket, where there is one: one partial batch is
    left and not one a bucket.

    Args:
      lengths: tokens of each sentence, bos and eos counted.
      batch_tokens: sentences * hypotheses * padded length of a batch stay within it (one sentence a device always fits).
      hypotheses: rows that the search keeps for a sentence.
      ways: devices that share a batch evenly.

    Returns:
      (padded length S, rows B, indices of the sentences) of each batch; B is at least the number of indices.
    """
    by_bucket: dict[int, list[int]] = {}
    for index in np.argsort(np.asarray(lengths, np.int64), kind="stable").tolist():
        by_bucket.setdefault(bucket(lengths[index]), []).append(index)
    batches = []
    sizes = sorted(by_bucket)
    for size in sizes:
        rows = full_rows(size, batch_tokens, hypotheses, ways)
        left = by_bucket[size]
        while len(left) >= rows:
            batches.append((size, rows, left[:rows]))
            left = left[rows:]
        if left and size * 2 in by_bucket:
            by_bucket[size * 2] = left + by_bucket[size * 2]
        elif left:
            some = 1 << (-(-len(left) // ways) - 1).bit_length()  # of each device
            batches.append((size, min(ways * some, rows), left))
    return batches


def pad_sources(sources: Sequence[Sequence[int]], rows: int, length: int, pad: int) -> np.ndarray:
    """Token ids as an int32 array [rows, length], padded on the right and with empty rows below."""
    out = np.full((rows, length), pad, np.int32)
    for row, ids in enumerate(sources):
        out[row, : len(ids)] = ids
    return out
