"""Draws which rows attend to which in the decoder's joint pass, from the model's row layout.

    python -m benchmarks.draw_rows

Writes docs/images/rows.svg, the picture in docs/method.md. Its rows are queries, its columns keys and values. A dot behind
a row says that a loss reads it. notebooks/inspect_joint_pass.ipynb draws the rows of a sentence of its own with `draw`.

Legend: R query rows, K key rows.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.common import finish
from janus_jax.command_line import ArgumentParser
from janus_jax.config import ModelConfig
from janus_jax.model.families import row_layout
from janus_jax.model.layout import RowGroup, RowLayout
from janus_jax.types import Batch, Specials

PATH = Path(__file__).parents[1] / "docs" / "images" / "rows.svg"
SENTENCE = ("bos", "two", "dogs", "run", "on", "grass", "eos")
MASKED = (2, 3, 5)
MASK = "[mask]"
SPECIALS = Specials()
FIRST_TOKEN = 5  # ids of the sentence's tokens, behind the special ones
STYLES = {  # row group -> title, color
    "ar_query": ("AR query", "#1f77b4"),
    "ar_content": ("AR content", "#7fb2d9"),
    "nar": ("NAR visible + mask", "#2ca02c"),
    "aux_gold": ("AUX gold", "#f2a154"),
    "aux_query": ("AUX query", "#d95f02"),
}
CELL, LABEL, TOP, GAP, LOSS = 20, 190, 92, 8, 40  # pixels


@dataclass(frozen=True)
class Group:
    """Rows of one kind."""

    name: str
    tokens: tuple[str, ...]
    color: str
    scored: tuple[bool, ...]  # whether a loss reads the row


def row_layout_of_sentence() -> RowLayout:
    """The joint pass over the sentence, as training lays it out."""
    length = len(SENTENCE)
    batch = Batch(
        source=jnp.zeros((1, 2), jnp.int32),
        target=jnp.where(jnp.arange(length) == length - 1, SPECIALS.eos, FIRST_TOKEN + jnp.arange(length))[None],
        masked=jnp.array([MASKED]),
        masked_count=jnp.array([len(MASKED)]),
        example_id=jnp.zeros(1, jnp.int32),
    )
    return row_layout(batch, ModelConfig(), SPECIALS, ("ar", "nar", "aux"))


def names_of_sentence() -> dict[int, str]:
    """The text of each token of `row_layout_of_sentence`."""
    names = {FIRST_TOKEN + i: token for i, token in enumerate(SENTENCE)}
    return names | {SPECIALS.eos: "eos", SPECIALS.mask: MASK}


def groups(layout: RowLayout, sentence: Sequence[str], names: Mapping[int, str]) -> tuple[list[Group], list[Group]]:
    """The groups of query rows and of key rows, in the order of the joint pass; the arguments are those of `draw`."""
    drawn = {group.name: _drawn(group, sentence, names) for group in layout.groups}
    return list(drawn.values()), [drawn[name] for name in layout.key_slices]


def _drawn(group: RowGroup, sentence: Sequence[str], names: Mapping[int, str]) -> Group:
    title, color = STYLES[group.name]
    if group.tokens is None:
        tokens = tuple(f"{MASK} → {sentence[int(position)]}" for position in group.positions[0])
    else:
        tokens = tuple(names[int(token)] for token in group.tokens[0])
    places = range(group.rows) if group.read is None else group.read[0].tolist()
    scored = tuple(group.predicts and row in places for row in range(group.rows))
    return Group(title, tokens, color, scored)


def attention_matrix(layout: RowLayout) -> np.ndarray:
    """[R, K] bool, True where a query row may attend to a key row of the first sentence, as training computes it."""
    matrix = np.zeros((layout.rows, layout.memory_rows), bool)
    for block in layout.attention():
        matrix[block.start : block.stop, block.key_start : block.key_stop] = np.asarray(block.mask[0])
    return matrix


def draw(layout: RowLayout, sentence: Sequence[str], names: Mapping[int, str]) -> str:
    """The picture as SVG text.

    Args:
      layout: rows of the families ar, nar and aux, of one sentence.
      sentence: the text of each target token, bos and eos included.
      names: the text of each token that a row reads, by its id.
    """
    rows, columns = groups(layout, sentence, names)
    matrix = attention_matrix(layout)
    x_of, y_of = _offsets(columns, LABEL), _offsets(rows, TOP)
    right = x_of[-1] + CELL
    width, height = right + LOSS, y_of[-1] + CELL + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        "<title>Which rows of the decoder attend to which: rows are queries, columns are keys</title>",
        f'<text x="{right + LOSS / 2}" y="{TOP - 6}" text-anchor="middle">loss</text>',
    ]
    first = 0
    for group in columns:
        x = x_of[first]
        parts.append(f'<text x="{x}" y="14" font-weight="bold" fill="{group.color}">{escape(group.name)}</text>')
        for i, token in enumerate(group.tokens):
            place = f"{x_of[first + i] + 14},{TOP - 6}"
            parts.append(f'<text transform="translate({place}) rotate(-60)">{escape(token)}</text>')
        first += len(group.tokens)
    first = 0
    for group in rows:
        y = y_of[first]
        parts.append(f'<text x="6" y="{y + 14}" font-weight="bold" fill="{group.color}">{escape(group.name)}</text>')
        for i, (token, scored) in enumerate(zip(group.tokens, group.scored, strict=True)):
            row, top = first + i, y_of[first + i]
            parts.append(f'<text x="{LABEL - 6}" y="{top + 14}" text-anchor="end">{escape(token)}</text>')
            for column, left in enumerate(x_of):
                fill = group.color if matrix[row, column] else "#eeeeee"
                parts.append(f'<rect x="{left}" y="{top}" width="{CELL - 2}" height="{CELL - 2}" fill="{fill}"/>')
            if scored:
                parts.append(f'<circle cx="{right + LOSS / 2}" cy="{top + CELL / 2 - 1}" r="4"/>')
        first += len(group.tokens)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _offsets(drawn: list[Group], start: int) -> list[int]:
    """Pixels at which each row or column begins, with a gap between groups."""
    offsets, at = [], start
    for group in drawn:
        for _ in group.tokens:
            offsets.append(at)
            at += CELL
        at += GAP
    return offsets


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the picture; returns the exit status."""
    parser = ArgumentParser(prog="python -m benchmarks.draw_rows", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=PATH)
    parser.add_argument("--json", action="store_true", help="where the picture is, as one JSON object, the last line")
    args = parser.parse_args(argv)
    partial = args.output.with_suffix(".partial")
    partial.write_text(draw(row_layout_of_sentence(), SENTENCE, names_of_sentence()), encoding="utf-8", newline="\n")
    partial.replace(args.output)
    finish({"output": str(args.output)}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
