"""Draws how mask-predict refines one sentence, pass by pass, from a trace of a real decode.

    python -m janus_jax.data --config=configs/demo_deen.py:masks
    python -m janus_jax.train --config=configs/demo_deen.py:masks --workdir=runs/demo_masks
    python -m benchmarks.draw_refinement --sources=prepared/demo_short > test.jsonl
    python -m janus_jax.decode --checkpoint=runs/demo_masks --mode=nar --passes=4 --format=jsonl --trace=trace.jsonl \\
        < test.jsonl > nar.jsonl
    python -m janus_jax.decode --checkpoint=runs/demo_masks --mode=ar --beam=1 --format=jsonl < test.jsonl > ar.jsonl
    python -m benchmarks.draw_refinement --trace=trace.jsonl --ar=ar.jsonl --line=237

These commands drew docs/images/refinement.svg, the picture in the README. A dashed box is a token that is masked
again after the pass. A filled box is a token that the pass changed.
"""

import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.common import finish
from janus_jax.command_line import ArgumentParser
from janus_jax.data import Prepared
from janus_jax.evaluate import trace_html

PATH = Path(__file__).parents[1] / "docs" / "images" / "refinement.svg"
# Pixels. Every character of a monospaced font is about 0.6 of its size wide, so that boxes fit without measuring text.
FONT, CHARACTER, GAP, LINE, LABEL, MARGIN = 14, 8.4, 5, 34, 92, 14
PLAIN, CHANGED, MASKED_AGAIN = "#f2f2f2", "#bfe3c3", "#c0392b"
MARK = "▁"  # SentencePiece's sign of a word's beginning


def draw(record: dict[str, Any], ar_text: str = "", ar_steps: int = 0) -> str:
    """The picture of one sentence as SVG text.

    Args:
      record: of `trace_html.read_traces`.
      ar_text: greedy search's output for the same source; empty: no line for it.
      ar_steps: how many decoder steps that took.
    """
    passes = record["passes"]
    widths = _widths(passes)
    lines = [record["source"], record["text"], ar_text]
    right = max(LABEL + sum(widths) + GAP * len(widths), *(LABEL + CHARACTER * len(text) for text in lines))
    width = round(right + 2 * MARGIN)
    top, parts = MARGIN + LINE / 2, []
    parts += _sentence(top, "source", record["source"])
    for number, shown in enumerate(passes, 1):
        top += LINE
        before = passes[number - 2]["tokens"] if number > 1 else shown["tokens"]
        parts.append(_text(MARGIN, top, f"pass {number}", "#555555"))
        parts += _boxes(top, shown, before, widths)
    top += LINE
    parts += _sentence(top, "NAR", f"{record['text']}", f"{len(passes)} passes")
    if ar_text:
        top += LINE
        parts += _sentence(top, "AR", ar_text, f"{ar_steps} steps")
    top += LINE
    parts += _legend(top)
    height = round(top + LINE / 2 + MARGIN)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="monospace" font-size="{FONT}">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            "<title>One sentence refined by mask-predict, pass by pass</title>",
            *parts,
            "</svg>",
        ]
    ) + "\n"  # fmt: skip


def _widths(passes: list[dict[str, list]]) -> list[float]:
    """Pixels of each slot: wide enough for its longest token in any pass."""
    return [
        CHARACTER * max(len(_shown(token)) for token in slot) + 8
        for slot in zip(*(p["tokens"] for p in passes), strict=True)
    ]


def _shown(token: str) -> str:
    return token.replace(MARK, "") or " "


def _boxes(top: float, shown: dict[str, list], before: list[str], widths: list[float]) -> list[str]:
    parts, x = [], float(MARGIN + LABEL)
    for token, old, again, width in zip(shown["tokens"], before, shown["remasked"], widths, strict=True):
        edge = f'stroke="{MASKED_AGAIN}" stroke-dasharray="4 3" stroke-width="1.5"' if again else 'stroke="none"'
        fill = CHANGED if token != old else PLAIN
        parts.append(_box(x, top, width, fill, edge))
        parts.append(_text(x + 4, top, _shown(token), "#999999" if again else "#111111"))
        x += width + GAP
    return parts


def _sentence(top: float, label: str, text: str, note: str = "") -> list[str]:
    return [
        _text(MARGIN, top - (5 if note else 0), label, "#111111", weight="bold"),
        *([_text(MARGIN, top + 9, note, "#555555", size=11)] if note else []),
        _text(MARGIN + LABEL, top, text, "#111111", weight="bold"),
    ]


def _legend(top: float) -> list[str]:
    left = MARGIN + LABEL
    return [
        _box(left, top, 18, PLAIN, f'stroke="{MASKED_AGAIN}" stroke-dasharray="4 3" stroke-width="1.5"'),
        _text(left + 26, top, "masked again after this pass", "#555555", size=12),
        _box(left + 260, top, 18, CHANGED, 'stroke="none"'),
        _text(left + 286, top, "changed by this pass", "#555555", size=12),
    ]


def _box(x: float, top: float, width: float, fill: str, edge: str) -> str:
    return f'<rect x="{x:.1f}" y="{top - 16:.1f}" width="{width:.1f}" height="24" rx="4" fill="{fill}" {edge}/>'


def _text(x: float, top: float, text: str, color: str, *, weight: str = "normal", size: int = FONT) -> str:
    return (
        f'<text x="{x:.1f}" y="{top:.1f}" fill="{color}" font-weight="{weight}" font-size="{size}" '
        f'xml:space="preserve">{escape(text)}</text>'
    )


def _record(path: str, line: int) -> dict[str, Any]:
    for record in trace_html.read_traces(path):
        if record["line"] == line:
            if not record["passes"]:
                raise ValueError(
                    f"{path}: the trace of line {line} has no passes: its output is empty; choose another --line"
                )
            return record
    raise ValueError(f"{path}: holds no trace of line {line}; choose another --line")


def _ar_output(path: str, line: int) -> tuple[str, int]:
    """Text and decoder steps of a line of `--mode=ar --format=jsonl`."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if not 1 <= line <= len(lines):
        raise ValueError(f"{path}: has {len(lines)} lines, so no line {line}; decode the same input as for --trace")
    try:
        output = json.loads(lines[line - 1])
        return output["text"], output["statistics"]["passes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {line}: no text with its passes ({error}); write the file with --mode=ar --format=jsonl"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the picture; returns the exit status (2: the input cannot be used)."""
    parser = ArgumentParser(prog="python -m benchmarks.draw_refinement", description=__doc__.split("\n")[0])
    parser.add_argument("--trace", help="file that python -m janus_jax.decode --mode=nar --trace=FILE wrote")
    parser.add_argument("--line", type=int, default=1, help="number of the sentence, from 1")
    parser.add_argument(
        "--ar", help="output of --mode=ar --beam=1 --format=jsonl for the same input, shown below the passes"
    )
    parser.add_argument("--output", type=Path, default=PATH)
    parser.add_argument(
        "--sources", metavar="PREPARED", help="only print the sources of this dataset's test split, as JSON lines"
    )
    parser.add_argument("--json", action="store_true", help="where the picture is, as one JSON object, the last line")
    args = parser.parse_args(argv)
    if bool(args.trace) == bool(args.sources):
        parser.error("give either --trace=FILE, to draw, or --sources=PREPARED, to print sources")
    try:
        if args.sources:
            for source, _ in Prepared.open(args.sources).text("test"):
                print(json.dumps({"source": source}, ensure_ascii=False))
            return 0
        record = _record(args.trace, args.line)
        ar_text, ar_steps = _ar_output(args.ar, args.line) if args.ar else ("", 0)
        picture = draw(record, ar_text, ar_steps)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_suffix(".partial")
    partial.write_text(picture, encoding="utf-8", newline="\n")
    partial.replace(args.output)
    finish({"output": str(args.output), "passes": len(record["passes"])}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
