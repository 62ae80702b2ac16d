"""The report on a prepared dataset: JSON values for programs, tables for readers.

Legend: N examples, S source length, T target length, B rows, M masked tokens at most.
"""

from typing import Any

import numpy as np

from janus_jax.config import Config
from janus_jax.data import buckets
from janus_jax.data.clean import MALFORMED

_BINS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def length_histogram(lengths: np.ndarray) -> dict[str, int]:
    """The number of lengths in each bin. The name of a bin is its range of tokens, bos and eos counted."""
    bounds = [*(b for b in _BINS if b < lengths.max()), max(int(lengths.max()), 1)]
    counts = np.bincount(np.searchsorted(bounds, lengths), minlength=len(bounds))
    lows = [1, *(bound + 1 for bound in bounds[:-1])]
    return {f"{low}-{high}": int(n) for low, high, n in zip(lows, bounds, counts, strict=True)}


def bucket_table(source_lengths: np.ndarray, target_lengths: np.ndarray, config: Config) -> list[dict[str, Any]]:
    """The bucket plan of the training split, with the share of its cells that is padding (empty rows included).

    Args:
      source_lengths, target_lengths: [N] tokens, bos and eos counted.
      config: batching settings and accumulation.

    Raises:
      DataError: no plan exists (see `buckets.plan`).
    """
    table = []
    for bucket in buckets.plan(source_lengths, target_lengths, config.data, config.train.accumulation):
        tokens = int((source_lengths + target_lengths)[bucket.examples].sum(dtype=np.int64))
        table.append(
            {
                "source_length": bucket.source_length,
                "target_length": bucket.target_length,
                "masked": bucket.masked,
                "rows": bucket.rows,
                "batches": bucket.batches,
                "examples": len(bucket.examples),
                "padding": round(1 - tokens / bucket.cells, 4),
            }
        )
    return table


def format_report(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = []
    for split, part in report["splits"].items():
        tokens = part["tokens"]
        kept = max(part["kept"], 1)
        if "blocks" in part:
            lines.append(
                f"{split}: kept {part['kept']} of {part['read']} documents, {tokens['target']} tokens in {part['blocks']} blocks"
            )
        else:
            lines.append(
                f"{split}: kept {part['kept']} of {part['read']} pairs; mean length {tokens['source'] / kept:.1f} -> "
                f"{tokens['target'] / kept:.1f} tokens, longest {part['longest']['source']} -> {part['longest']['target']}"
            )
        # Absent from older reports.
        lines += [f"  cut {count}: {side} too long" for side, count in part.get("cut", {}).items() if count]
        for reason, entry in part["dropped"].items():
            example, fix = entry["examples"][0], MALFORMED.get(reason)
            start, end = ("warning: ", f" ({fix})") if fix else ("  ", "")
            lines.append(
                f"{start}dropped {entry['count']}: {reason}{end}, first {example['where']}: {example['text'][:60]}"
            )
    tokenizer = report["tokenizer"]
    lines.append(
        f"tokenizer: {tokenizer['vocab_size']} tokens; {tokenizer['unknown_tokens']} unknown tokens in the data"
    )
    lines.append("bucket  source length  target length  masked at most  rows  batches  examples  padding")
    for i, b in enumerate(report["buckets"]):
        lines.append(
            f"{i:>6}  {b['source_length']:>13}  {b['target_length']:>13}  {b['masked']:>14}  {b['rows']:>4}  {b['batches']:>7}  "
            f"{b['examples']:>8}  {b['padding']:>7.1%}"
        )
    return "\n".join(lines)
