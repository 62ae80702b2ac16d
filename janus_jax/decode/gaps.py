"""Text with gaps as token ids: a gap is a run of `<mask>`."""

import re
from collections.abc import Sequence

from janus_jax.text import Tokenizer

GAP = "<mask>"  # in text to complete: one missing token
_RUN = re.compile(rf"{GAP}(?:\s*{GAP})*")


def with_gaps(targets: Sequence[str], tokenizer: Tokenizer, mask: int, first_line: int) -> list[list[int]]:
    """Token ids of texts in which each `<mask>` stands for a missing token, `mask`.

    Args:
      targets: texts.
      tokenizer: of the texts.
      mask: id that the model reads in a gap.
      first_line: line number of the first target, for messages.

    Raises:
      ValueError: text around the gaps becomes `mask`.
    """
    rows = []
    for number, target in enumerate(targets, first_line):
        ids: list[int] = []
        for at, piece in enumerate(target.split(GAP)):
            ids += ([mask] if at else []) + _ids(piece, at > 0, tokenizer, mask, f"line {number}")
        rows.append(ids)
    return rows


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
      ValueError: a gap without text, a text without gap, a target that is too long, or text around the gaps becomes `mask`.
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
        ids += _ids(piece, at > 0, tokenizer, mask, where)
        if at < len(filling):
            space = " " if piece[-1:].isspace() else ""
            tokens = _ids(space + filling[at].strip(), at > 0 or bool(piece), tokenizer)
            if not tokens:
                raise ValueError(f"{where}: nothing to fill gap {at + 1} with; leave the gap out of the target")
            ids += [mask] * len(tokens)
            inside += tokens
    return ids, inside


def _ids(text: str, continues: bool, tokenizer: Tokenizer, mask: int | None = None, where: str = "") -> list[int]:
    """Token ids of a part of a target, none for white space.

    Args:
      text: the part. Of the spaces around a gap only the one behind it is kept: it belongs to the next word.
      continues: other text or a gap stands before it.
      tokenizer: of the text.
      mask: id that the part may not hold; None: it may.
      where: its place, for messages.
    """
    if not text.strip():
        return []
    inside = continues and not text[0].isspace()
    ids = (tokenizer.encode_inside if inside else tokenizer.encode)(text.rstrip())
    if mask in ids:
        raise ValueError(
            f"{where}: {text.strip()!r} holds a word that the tokenizer does not know, and this model cannot tell an unknown word "
            "from a gap; write it otherwise, or make it a gap"
        )
    return ids
