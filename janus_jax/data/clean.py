"""Filters of sentence pairs and documents, and statistics of what they drop."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from janus_jax.data.sources import SplitSource

_EXAMPLES = 5  # kept for each reason
_SHOWN = 120  # characters of an example
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")  # Cc but TAB


@dataclass
class FilterStats:
    """Counts of what was read, kept and dropped of a split, with examples of what was dropped."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)  # reason -> {"count", "examples"}
    cut: dict[str, int] = field(default_factory=dict)  # side -> how many lost tokens

    def drop(self, reason: str, where: str, shown: Any) -> None:
        """Counts a dropped pair; the first few are kept as examples.

        Args:
          reason: why it is dropped.
          where: its place, for messages.
          shown: its text.
        """
        entry = self.dropped.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < _EXAMPLES:
            text = shown if isinstance(shown, str) else repr(shown)
            entry["examples"].append({"where": where, "text": text[:_SHOWN]})


# Reasons to drop a line that come from the form of the file, not from the length of its text.
MALFORMED = {
    "not two tab-separated sides": "each line must be source TAB target",
    "not UTF-8": "convert the file to UTF-8",
    "control character": "remove these characters",
}


def clean_split(source: SplitSource, stats: FilterStats) -> Iterator[tuple[int, str, str]]:
    """Pairs of clean text: valid UTF-8, no control characters, no empty side, runs of white space replaced by one space.

    Args:
      source: the raw pairs.
      stats: counts every pair that is read or dropped. The caller counts those kept: a length filter may still drop pairs.

    Returns:
      (number, source text, target text) of each clean pair.
    """
    for number, *sides in source:
        stats.read += 1
        if sides[1] is None:
            stats.drop("not two tab-separated sides", source.where(number), sides[0])
            continue
        texts = _clean(sides, stats, source.where(number))
        if texts is None:
            continue
        if not all(texts):
            stats.drop("empty source" if not texts[0] else "empty target", source.where(number), "\t".join(texts))
            continue
        yield number, texts[0], texts[1]


def clean_documents(source: SplitSource, stats: FilterStats) -> Iterator[tuple[int, str]]:
    """(number, text) of each clean document, by the rules of `clean_split`; an empty line is no document.

    Args:
      source: the raw documents.
      stats: counts every document that is read or dropped. The caller counts those kept.
    """
    for number, raw in source:
        if not raw.strip():
            continue
        stats.read += 1
        texts = _clean([raw], stats, source.where(number))
        if texts is not None:
            yield number, texts[0]


def _clean(sides: list[Any], stats: FilterStats, where: str) -> list[str] | None:
    """The sides as text, runs of white space replaced by one space; None where a side is not text."""
    try:
        texts = [side.decode("utf-8") if isinstance(side, bytes) else side for side in sides]
    except UnicodeDecodeError:
        stats.drop("not UTF-8", where, b"\t".join(sides))
        return None
    if any(_CONTROL.search(text) for text in texts):
        stats.drop("control character", where, repr("\t".join(texts)))
        return None
    return [" ".join(text.split()) for text in texts]


def write_clean(source: SplitSource, stats: FilterStats, file: TextIO) -> int:
    """Writes a split's clean pairs as lines of number, source and target, separated by TABs.

    Returns:
      The number of pairs.
    """
    count = 0
    for pair in clean_split(source, stats):
        file.write("{}\t{}\t{}\n".format(*pair))
        count += 1
    return count


def read_clean(file: TextIO) -> Iterator[tuple[int, str, str]]:
    """Reads what `write_clean` wrote; the file is open with newline="\\n"."""
    for line in file:
        number, source, target = line.rstrip("\n").split("\t")
        yield int(number), source, target


def length_reason(source: int, target: int, max_source: int, max_target: int, max_ratio: float) -> str | None:
    """Why a pair of these token lengths (bos and eos counted) is dropped, or None if it is kept.

    Args:
      max_ratio: longest side / shortest side, without bos and eos; 0: no limit.
    """
    if source <= 2 or target <= 2:
        return "empty source" if source <= 2 else "empty target"
    if source > max_source:
        return "source too long"
    if target > max_target:
        return "target too long"
    if max_ratio and max(source, target) - 2 > max_ratio * (min(source, target) - 2):
        return "length ratio"
    return None
