"""Sentences to decode as token ids: framed, cut, with the gaps of what is partly given; and the arrays of a batch of them.

Legend: B sentences of a batch, S padded source length, T target slots, P prefix tokens, M gaps at most.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_jax.decode import batches
from janus_jax.text import Tokenizer
from janus_jax.types import Specials

log = logging.getLogger(__name__)

GAP = "<mask>"  # in text to complete: a missing token
_RUN = re.compile(rf"{GAP}(?:\s*{GAP})*")


@dataclass(frozen=True)
class Work:
    """Sentences with their frames, bos ... eos; prefixes, targets to fill and fillings to score are absent or one each."""

    sources: list[list[int]]  # [] for an empty line
    prefixes: list[list[int]] | None = None
    starts: list[list[int]] | None = None
    fillings: list[list[int]] | None = None
    trace: bool = False
    first_line: int = 0

    def length(self, index: int) -> int:
        """What decides which batch a sentence goes into."""
        return max(len(self.sources[index]), len(self.starts[index]) if self.starts else 0)

    def arrays(self, chosen: list[int], rows: int, length: int, pad: int) -> dict[str, Any]:
        """The arrays of a `Request` for the sentences `chosen`, with empty rows up to `rows`."""
        return {
            "source": batches.pad_sources([self.sources[i] for i in chosen], rows, length, pad),
            "lines": np.pad(np.asarray(chosen, np.int32) + self.first_line, (0, rows - len(chosen))),
            "prefix": _padded(self.prefixes, chosen, rows, pad),
            "start": _padded(self.starts, chosen, rows, pad),
            "filling": _padded(self.fillings, chosen, rows, pad),
        }


def bare(ids: Sequence[int], specials: Specials) -> list[int]:
    """Without bos, eos and padding."""
    return [i for i in map(int, ids) if i not in (specials.bos, specials.eos, specials.pad)]


def framed(
    sentences: Sequence[Sequence[int]], longest: int, what: str, specials: Specials, first_line: int = 0
) -> list[list[int]]:
    """bos ... eos, cut to `longest` with one warning; [] for an empty one."""
    ids = [bare(sentence, specials) for sentence in sentences]
    room = longest - 2
    long = [number for number, sentence in enumerate(ids, first_line + 1) if len(sentence) > room]
    if long:
        some = ", ".join(map(str, long[:10])) + (", ..." if len(long) > 10 else "")
        log.warning(
            "%d of %d %s are longer than %d tokens and were cut: line %s", len(long), len(ids), what, room, some
        )
    return [[specials.bos, *sentence[:room], specials.eos] if sentence else [] for sentence in ids]


def with_gaps(target: str, tokenizer: Tokenizer, mask: int) -> list[int]:
    """Token ids of text in which each `<mask>` stands for a missing token, `mask`."""
    ids: list[int] = []
    for number, piece in enumerate(target.split(GAP)):
        # Of spaces around a gap the one behind it counts, as a part of the next word.
        ids += ([mask] if number else []) + (tokenizer.encode(piece.rstrip()) if piece.strip() else [])
    return ids


def with_fillings(
    targets: Sequence[str],
    fillings: Sequence[Sequence[str]],
    longest: int,
    tokenizer: Tokenizer,
    mask: int,
    first_line: int,
) -> list[tuple[list[int], list[int]]]:
    """Token ids of texts whose gaps are as long as what is to fill them, and the tokens that fill them.

    Args:
      targets: texts; each run of `<mask>` is a gap, however many there are in it.
      fillings: for each of them the texts of its gaps.
      longest: tokens that a target may have.
      tokenizer: of the texts.
      mask: the token that the model reads in a gap.
      first_line: number of the first, for messages.

    Raises:
      ValueError: not one text for each gap, nothing in one, or a target that is too long.
    """
    if len(fillings) != len(targets):
        raise ValueError(f"infills: {len(fillings)} given for {len(targets)} targets; give a list of texts for each")
    made = []
    for number, (target, filling) in enumerate(zip(targets, fillings, strict=True), first_line):
        ids, inside = _with_filling(target, filling, f"line {number}", tokenizer, mask)
        if len(ids) > longest:
            raise ValueError(f"line {number}: the target has {len(ids)} tokens; at most {longest} can be scored")
        made.append((ids, inside))
    return made


def _with_filling(
    target: str, filling: Sequence[str], where: str, tokenizer: Tokenizer, mask: int
) -> tuple[list[int], list[int]]:
    pieces = _RUN.split(target)
    if len(filling) != len(pieces) - 1:
        raise ValueError(f"{where}: {len(filling)} texts for {len(pieces) - 1} gaps; give one for each run of {GAP}")
    ids, inside = [], []
    for at, piece in enumerate(pieces):
        ids += tokenizer.encode(piece.rstrip()) if piece.strip() else []
        if at < len(filling):
            space = " " if piece.endswith(" ") else ""
            tokens = tokenizer.encode(space + filling[at].strip()) if filling[at].strip() else []
            if not tokens:
                raise ValueError(f"{where}: nothing to fill gap {at + 1} with; leave the gap out of the target")
            ids += [mask] * len(tokens)
            inside += tokens
    return ids, inside


def _padded(values: list[list[int]] | None, chosen: list[int], rows: int, pad: int) -> np.ndarray | None:
    """[rows, length] of the chosen ones, of a length from few; None where there are none."""
    if values is None:
        return None
    longest = max(len(values[i]) for i in chosen)
    return batches.pad_sources([values[i] for i in chosen], rows, batches.bucket(longest, at_least=8, halves=True), pad)
