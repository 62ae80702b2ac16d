"""Text with gaps as token ids: a gap is a run of `<mask>`."""

import re
from collections.abc import Sequence

from janus_jax.text import Tokenizer

GAP = "<mask>"  # in text to complete: one missing token
_RUN = re.compile(rf"{GAP}(?:\s*{GAP})*")


def with_gaps(target: str, tokenizer: Tokenizer, mask: int) -> list[int]:
    """Token ids of text in which each `<mask>` stands for a missing token, `mask`."""
    ids: list[int] = []
    for number, piece in enumerate(target.split(GAP)):
        # Of the spaces around a gap only the one behind it is kept: it belongs to the next word.
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
    """Token ids of texts whose gaps are as long as the texts that fill them, and the tokens that fill them.

    Args:
      targets: texts; each run of `<mask>` is one gap, whatever its length.
      fillings: for each target the texts of its gaps.
      longest: most tokens of a target.
      tokenizer: of the texts.
      mask: id that the model reads in a gap.
      first_line: line number of the first target, for messages.

    Raises:
      ValueError: a gap without text, a text without gap, or a target that is too long.
    """
    if len(fillings) != len(targets):
        raise ValueError(
            f"infills: {len(fillings)} lists for {len(targets)} targets; give a list of texts for each target"
        )
    pairs = []
    for number, (target, filling) in enumerate(zip(targets, fillings, strict=True), first_line):
        ids, inside = _with_filling(target, filling, f"line {number}", tokenizer, mask)
        if len(ids) > longest:
            raise ValueError(f"line {number}: the target has {len(ids)} tokens; at most {longest} can be scored")
        pairs.append((ids, inside))
    return pairs


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
