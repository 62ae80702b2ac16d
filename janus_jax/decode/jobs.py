"""A file of sentences decoded in chunks, so that a killed run goes on where it stood."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.decode.files import LinesError, one_line, write_bytes
from janus_jax.decode.output import Output

log = logging.getLogger(__name__)

FORMATS = ("lines", "tsv", "jsonl")
CHUNK = 8192  # sentences between two states of the output that a later run can go on from


@dataclass(frozen=True)
class Item:
    """A sentence to decode."""

    source: str
    given: str | None = None  # what the output begins with (ar), or the target with its gaps (nar, infill)
    infill: tuple[str, ...] | None = None  # text of each gap, to be scored (infill)
    extra: dict[str, Any] | None = None  # the object that it came in (jsonl)


def parse(lines: Sequence[str], form: str, name: str, key: str, scored: bool = False) -> list[Item]:
    """The sentences of a file.

    Args:
      lines: of the file.
      form: "lines" a source each; "tsv" a source, or source TAB what is given of the target; "jsonl" objects with `source`
        and perhaps `prefix` or `target`, and `infill` beside a target, a list of the texts of its gaps.
      name: of the file, for messages.
      key: "prefix" or "target", whichever the mode takes.
      scored: objects may hold `infill`.

    Raises:
      LinesError: a line is not of that form, or some lines give something of the target and others do not.
    """
    if form == "lines":
        return [Item(line) for line in lines]
    if form == "tsv":
        items = []
        for number, line in enumerate(lines, 1):
            cells = line.split("\t")
            if len(cells) > 2:
                raise LinesError(f"{name}, line {number}: {len(cells)} columns; give source, or source TAB {key}")
            items.append(Item(cells[0], cells[1] if len(cells) > 1 else None))
    else:
        items = [_parse_object(line, f"{name}, line {number}", key, scored) for number, line in enumerate(lines, 1)]
    for what, field in ((key, "given"), ("infill", "infill")):
        absent = [number for number, item in enumerate(items, 1) if getattr(item, field) is None]
        if absent and len(absent) < len(items):
            raise LinesError(
                f"{name}, line {absent[0]}: no {what}, which other lines have; give every line one (it may be empty)"
            )
    return items


def _parse_object(line: str, where: str, key: str, scored: bool) -> Item:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise LinesError(f"{where}: not JSON ({error.msg}); write one object a line") from error
    if not isinstance(value, dict) or not isinstance(value.get("source"), str):
        raise LinesError(f'{where}: no text under "source"; write {{"source": "..."}}')
    given = value.get(key)
    if given is not None and not isinstance(given, str):
        raise LinesError(f'{where}: "{key}" must be text')
    infill = value.get("infill") if scored else None
    if infill is not None and not (isinstance(infill, list) and all(isinstance(text, str) for text in infill)):
        raise LinesError(f'{where}: "infill" must be a list of texts, one for each gap')
    return Item(value["source"], given, None if infill is None else tuple(infill), value)


def render(number: int, item: Item, output: Output, form: str, *, scores: bool, nbest: int) -> str:
    """What is written for sentence `number` (from 1), without the last line feed."""
    ranked = (output, *output.others)
    if form == "jsonl":
        made = {
            **(item.extra or {}),
            "text": output.text,
            "score": output.score,
            "tokens": output.tokens,
            "statistics": output.statistics,
        }
        if nbest > 1:
            made["others"] = [{"text": o.text, "score": o.score, "tokens": o.tokens} for o in output.others]
        return json.dumps(made, ensure_ascii=False)
    lines = []
    for one in ranked:
        cells = [str(number)] if nbest > 1 else []
        cells += [f"{one.score:.4f}"] if scores or nbest > 1 else []
        cells += [item.source] if form == "tsv" else []
        lines.append(one_line("\t".join([*cells, one.text])))
    return "\n".join(lines)


def render_trace(number: int, item: Item, output: Output) -> str:
    """The record of a sentence's refinement: JSON, for `python -m janus_jax.evaluate --trace_html`."""
    record = {"line": number, "source": item.source, "text": output.text, "score": output.score, "passes": output.trace}
    return json.dumps(record, ensure_ascii=False)


def run(
    items: Sequence[Item],
    output: str | os.PathLike[str] | None,
    decode: Callable[[int, Sequence[Item]], Sequence[str]],
    *,
    signature: Any,
    chunk: int = CHUNK,
    skipped: Callable[[int], Any] | None = None,
) -> None:
    """Decodes and writes, in order, as many records as there are items.

    What is done so far stands in OUTPUT.partial; OUTPUT.state.json says how much of it is whole and of which input and
    settings. The same call goes on from there after a kill; another one begins anew. OUTPUT itself appears at the end.

    Args:
      items: what to decode.
      output: file to write; None or "-": standard output, without resuming.
      decode: the number of items before a chunk, and its items -> a record each.
      signature: JSON of what decides the output: settings, checkpoint.
      chunk: items between two states.
      skipped: called with the number of items that an earlier run has done.

    Raises:
      LinesError: the file cannot be written.
    """
    if output is None or str(output) == "-":
        for start in range(0, len(items), chunk):
            write_bytes(None, _records(decode(start, items[start : start + chunk])))
        return
    partial, state = Path(f"{output}.partial"), Path(f"{output}.state.json")
    digest = hashlib.sha256(json.dumps(signature, sort_keys=True).encode())
    for item in items:
        digest.update(repr(item).encode())
    mark = digest.hexdigest()
    done, size = _resume(state, partial, mark)
    if done:
        log.warning("%s: goes on after the %d of %d sentences that an earlier run has done", output, done, len(items))
        if skipped:
            skipped(done)
    try:
        with partial.open("r+b" if done else "wb") as file:
            file.truncate(size)
            file.seek(size)
            while done < len(items):
                part = items[done : done + chunk]
                file.write(_records(decode(done, part)))
                file.flush()
                os.fsync(file.fileno())
                done += len(part)
                write_bytes(state, json.dumps({"signature": mark, "done": done, "bytes": file.tell()}).encode())
        os.replace(partial, output)
        state.unlink(missing_ok=True)
    except OSError as error:
        raise LinesError(
            f"{output}: {error.strerror}; name a file in a writable directory with room (the same command goes on later)"
        ) from error


def _resume(state: Path, partial: Path, mark: str) -> tuple[int, int]:
    """(items, bytes) of `partial` that are whole and of the same input and settings."""
    try:
        found = json.loads(state.read_bytes())
        if found["signature"] == mark and partial.stat().st_size >= found["bytes"]:
            return int(found["done"]), int(found["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, 0


def _records(records: Sequence[str]) -> bytes:
    return "".join(record + "\n" for record in records).encode("utf-8", errors="replace")
