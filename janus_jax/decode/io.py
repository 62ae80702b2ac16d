"""Files of sentences: lines, TSV and JSON lines in and out, and output that a killed run can resume.

Lines are split only at line feeds, so that line numbers never change.
"""

import codecs
import contextlib
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from janus_jax import files
from janus_jax.data import sources
from janus_jax.decode.modes import MODES
from janus_jax.decode.types import Output

log = logging.getLogger(__name__)

FORMATS = ("lines", "tsv", "jsonl")
# Keys of a JSON line: the input of a mode that it gives, and the field of an `Item` that holds it.
_KEYS = {"prefix": ("prefixes", "text"), "target": ("targets", "text"), "infill": ("infills", "infill")}
# First bytes of files that hold no UTF-8 text, and what to do about them.
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed by gzip; unpack it with gunzip, or give it as a file whose name ends in .gz",
    b"\xfd7zXZ": "compressed by xz; unpack it with unxz, or give it as a file whose name ends in .xz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it with unzstd",
    b"BZh91AY&SY": "compressed by bzip2; unpack it with bunzip2",
    b"PK\x03\x04": "a zip archive; unpack it with unzip",
    codecs.BOM_UTF16_LE: "UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
}
CHUNK = 8192  # sentences between two states from which a killed run resumes


class LinesError(ValueError):
    """A file of lines cannot be used; the message names the file and the fix."""


def split_lines(data: bytes, name: str) -> list[str]:
    r"""Lines of UTF-8 text, split at "\n" alone (`b"a\nb\n"` -> ["a", "b"]); a "\r" before it and a byte-order mark are dropped.

    Bytes that are not UTF-8 are replaced, with one warning that names the lines.

    Raises:
      LinesError: the first bytes are those of UTF-16 or of a compressed file.
    """
    for start, problem in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise LinesError(f"{name}: {problem}")
    raw = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if raw[-1] == b"":
        raw.pop()
    lines, broken = [], []
    for number, piece in enumerate(raw, 1):
        try:
            line = piece.decode("utf-8")
        except UnicodeDecodeError:
            broken.append(number)
            line = piece.decode("utf-8", errors="replace")
        lines.append(line.removesuffix("\r"))
    if broken:
        some = ", ".join(map(str, broken[:10])) + (", ..." if len(broken) > 10 else "")
        log.warning("%s: bytes that are not UTF-8 were replaced in %d lines: %s", name, len(broken), some)
    return lines


def read_lines(path: str | os.PathLike[str] | None) -> list[str]:
    """The lines of a plain, .gz or .xz file, or of standard input where `path` is None or "-"; see `split_lines`.

    Raises:
      LinesError: the file is missing, cannot be read, or is not text.
    """
    if _is_standard(path):
        if sys.stdin is None:
            raise LinesError("standard input is closed; name a file of lines")
        return split_lines(sys.stdin.buffer.read(), "standard input")
    try:
        with sources.open_file(Path(path)) as file:
            data = file.read()
    except sources.READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise LinesError(f"{path}: {reason}; name a readable text file, a sentence a line") from error
    return split_lines(data, str(path))


def write_lines(path: str | os.PathLike[str] | None, lines: Iterable[str]) -> None:
    """Writes one line each, whole file or nothing; to standard output where `path` is None or "-".

    Raises:
      LinesError: the file cannot be written.
    """
    write_bytes(path, "".join(f"{one_line(line)}\n" for line in lines).encode("utf-8", errors="replace"))


def one_line(text: str) -> str:
    """Text with spaces instead of line feeds and carriage returns, which byte-level tokenizers can produce."""
    return text.replace("\n", " ").replace("\r", " ")


def write_bytes(path: str | os.PathLike[str] | None, data: bytes) -> None:
    """Writes a file, whole or not at all, as `files.write_bytes`; to standard output where `path` is None or "-".

    Raises:
      LinesError: the file cannot be written.
    """
    if _is_standard(path):
        with _standard_output() as stream:
            stream.write(data)
        return
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def check_outputs(read: Mapping[str, str | None], written: Mapping[str, str | None]) -> None:
    """Tries, before any long work, whether files can be written, and that each file has one purpose.

    Args:
      read: files that are read, by the flag that names them; None: none, or a standard stream.
      written: files that will be written, in the same way; absent files are not made.

    Raises:
      LinesError: a file cannot be written, or two flags name the same file.
    """
    flags: dict[Path | str, str] = {}
    for flag, path in {**read, **written}.items():
        if path is None or (flag in read and not Path(path).is_file()):
            continue  # `read_lines` names what cannot be read
        place: Path | str | None = "-"
        if path != "-":
            try:
                if flag in written:
                    files.check_writable(path)
                place = files.target(path)
            except OSError as error:
                raise _unwritable(f"{flag}={path}", error) from error
        if place is not None:
            if place in flags:
                raise LinesError(f"{flag}={path}: {flags[place]} names the same file; give another")
            flags[place] = flag


def _is_standard(path: str | os.PathLike[str] | None) -> bool:
    return path is None or str(path) == "-"


@contextlib.contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    if sys.stdout is None:
        raise LinesError("standard output is closed; redirect it, or name a file with --output")
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def _unwritable(name: str | os.PathLike[str], error: OSError) -> LinesError:
    return LinesError(f"{name}: {error.strerror or error}; name a file in a writable directory with room")


@dataclass(frozen=True)
class Item:
    """A sentence to decode."""

    source: str
    text: str | None = None  # a prefix of the output, or a target with gaps
    infill: tuple[str, ...] | None = None  # text of each gap of the target, to be scored
    extra: dict[str, Any] | None = None  # the object of a JSON line


def parse(lines: Sequence[str], form: str, name: str, mode: str) -> list[Item]:
    """The sentences of a file.

    Args:
      lines: the file's.
      form: one of `FORMATS`.
      name: of the file, for messages.
      mode: a key of `MODES`, which says what a line may hold beside its source.

    Raises:
      LinesError: a line has another form, holds what the mode does not take, or lacks what other lines have.
    """
    if form == "lines":
        return [Item(line) for line in lines]
    taken = [key for key, (inputs, _) in _KEYS.items() if inputs in MODES[mode].inputs]
    read = _parse_columns if form == "tsv" else _parse_object
    items = [read(line, f"{name}, line {number}", mode, taken) for number, line in enumerate(lines, 1)]
    for key in taken:
        absent = [number for number, item in enumerate(items, 1) if getattr(item, _KEYS[key][1]) is None]
        if absent and _KEYS[key][0] in MODES[mode].required:
            shape = f"source TAB {key}" if form == "tsv" else f'{{"source": "...", "{key}": "..."}}'
            raise LinesError(f"{name}, line {absent[0]}: no {key}, which mode {mode} needs; write {shape}")
        if absent and len(absent) < len(items):
            raise LinesError(
                f"{name}, line {absent[0]}: no {key}, which other lines have; give every line one (it may be empty)"
            )
    return items


def _parse_columns(line: str, where: str, mode: str, taken: Sequence[str]) -> Item:
    cells = line.split("\t")
    if len(cells) > 1 + bool(taken):
        form = f"source, or source TAB {taken[0]}" if taken else f"the source alone: mode {mode} takes nothing else"
        raise LinesError(f"{where}: {len(cells)} columns; give {form}")
    return Item(cells[0], cells[1] if len(cells) > 1 else None)


def _parse_object(line: str, where: str, mode: str, taken: Sequence[str]) -> Item:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise LinesError(f"{where}: not JSON ({reason}); write one object a line") from error
    except UnicodeEncodeError as error:
        raise LinesError(
            f"{where}: half a surrogate pair (\\u{ord(error.object[error.start]):x}), which is no character; write both halves"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise LinesError(f"{where}: {str(error).split(';')[0]}; write long numbers as text") from error
    if not isinstance(value, dict) or not isinstance(value.get("source"), str):
        raise LinesError(f'{where}: no text under "source"; write {{"source": "..."}}')
    for key, (inputs, _) in _KEYS.items():
        if value.get(key) is not None and key not in taken:
            modes = " and ".join(other for other, entry in MODES.items() if inputs in entry.inputs)
            raise LinesError(
                f'{where}: "{key}" is for mode {modes}; mode {mode} takes none: choose another mode, or rename the key'
            )
    text = value.get(taken[0]) if taken else None
    if text is not None and not isinstance(text, str):
        raise LinesError(f'{where}: "{taken[0]}" must be text')
    infill = value.get("infill")
    if infill is not None and not (isinstance(infill, list) and all(isinstance(one, str) for one in infill)):
        raise LinesError(f'{where}: "infill" must be a list of texts, one for each gap')
    return Item(value["source"], text, None if infill is None else tuple(infill), value)


def render(number: int, item: Item, output: Output, form: str, *, scores: bool, nbest: int) -> str:
    """The record of sentence `number` (from 1), without the last line feed."""
    ranked = (output, *output.others)
    if form == "jsonl":
        record = {
            **(item.extra or {}),
            "text": output.text,
            "score": _json_number(output.score),
            "tokens": output.tokens,
            "statistics": output.statistics,
        }
        if nbest > 1:
            record["others"] = [
                {"text": o.text, "score": _json_number(o.score), "tokens": o.tokens} for o in output.others
            ]
        return json.dumps(record, ensure_ascii=False)
    lines = []
    for one in ranked:
        cells = [str(number)] if nbest > 1 else []
        cells += [f"{one.score:.4f}"] if scores or nbest > 1 else []
        # A TAB in the text would be one more column, which reading the record again refuses.
        cells += [item.source, one.text.replace("\t", " ")] if form == "tsv" else [one.text]
        lines.append(one_line("\t".join(cells)))
    return "\n".join(lines)


def _json_number(value: float) -> float | None:
    """JSON has neither NaN nor infinities."""
    return value if math.isfinite(value) else None


def render_trace(number: int, item: Item, output: Output) -> str:
    """The record of the passes of a sentence: JSON, for `python -m janus_jax.evaluate --trace_html`."""
    record = {"line": number, "source": item.source, "text": output.text, "score": output.score, "passes": output.trace}
    return json.dumps(record, ensure_ascii=False)


def write_resumable(
    items: Sequence[Item],
    output: str | os.PathLike[str] | None,
    decode: Callable[[int, Sequence[Item]], Sequence[str]],
    *,
    signature: Any,
    chunk: int = CHUNK,
    skipped: Callable[[int], Any] | None = None,
) -> None:
    """Decodes items in chunks and writes a record for each, in order; a killed run resumes after its last whole chunk.

    Records are collected in OUTPUT.partial, which stays locked. OUTPUT.state.json holds how much of it is whole, and hashes
    of it and of input and settings: a run with the same hashes resumes, any other starts from the first item. OUTPUT appears
    at the end. What is no regular file (standard output, a FIFO, a device) gets each chunk at once and cannot be resumed.

    Args:
      items: sentences to decode.
      output: file to write; None or "-": standard output.
      decode: (number of items before a chunk, its items) -> a record for each.
      signature: JSON of all that decides the output: settings, checkpoint.
      chunk: items between two states.
      skipped: called with the number of items that an earlier run has decoded.

    Raises:
      LinesError: the file cannot be written, or another process is writing it.
    """
    file = None
    try:
        file = None if _is_standard(output) else files.target(output)
        if file is None:
            with _standard_output() if _is_standard(output) else open(output, "wb") as stream:
                for start in range(0, len(items), chunk):
                    stream.write(_records(decode(start, items[start : start + chunk])))
                    stream.flush()
            return
        partial, state = (file.with_name(file.name + ending) for ending in (".partial", ".state.json"))
        with _locked(partial, output) as stream:
            _write_chunks(items, stream, state, job_hash(items, signature), decode, chunk, skipped)
            files.replace(partial, file)
            state.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        if _is_standard(output):
            raise LinesError(f"standard output: {reason}") from error
        later = "" if file is None else " (the same command resumes later)"
        raise LinesError(f"{output}: {reason}; name a file in a writable directory with room{later}") from error


@contextlib.contextmanager
def _locked(partial: Path, output: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Keeps the partial file locked; removes it after a failure if it is empty."""
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(files.locked(partial))
        except BlockingIOError as error:
            raise LinesError(
                f"{output}: another process is writing it ({partial} is locked); wait for it, or name another file"
            ) from error
        try:
            yield stream
        except BaseException:
            if not os.fstat(stream.fileno()).st_size:
                partial.unlink(missing_ok=True)
            raise


def _write_chunks(
    items: Sequence[Item],
    stream: BinaryIO,
    state: Path,
    mark: str,
    decode: Callable[[int, Sequence[Item]], Sequence[str]],
    chunk: int,
    skipped: Callable[[int], Any] | None,
) -> None:
    done, content = _resume(stream, state, mark, len(items))
    if done:
        log.warning(
            "%s: resumes after %d of %d sentences, which an earlier run has decoded",
            str(state).removesuffix(".state.json"),
            done,
            len(items),
        )
        if skipped:
            skipped(done)
    else:
        state.unlink(missing_ok=True)  # of another job, whose records are dropped here
    stream.truncate()
    while done < len(items):
        part = items[done : done + chunk]
        records = _records(decode(done, part))
        stream.write(records)
        stream.flush()
        os.fsync(stream.fileno())
        content.update(records)
        done += len(part)
        saved = {"signature": mark, "done": done, "bytes": stream.tell(), "content": content.hexdigest()}
        files.write_bytes(state, json.dumps(saved).encode())


def job_hash(items: Sequence[Item], signature: Any) -> str:
    """A hash of the items and of all that decides their records."""
    digest = hashlib.sha256(json.dumps(signature, sort_keys=True).encode())
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()


def _resume(stream: BinaryIO, state: Path, mark: str, count: int) -> tuple[int, Any]:
    """Items of the same job whose records are whole, and the hash of these; the stream stands behind them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        saved = json.loads(state.read_bytes())
        done, content = saved["done"], hashlib.sha256(stream.read(saved["bytes"]))
        same = saved["signature"] == mark and saved["content"] == content.hexdigest()
        if same and stream.tell() == saved["bytes"] and type(done) is int and 0 < done <= count:
            return done, content
    stream.seek(0)
    return 0, hashlib.sha256()


def _records(records: Sequence[str]) -> bytes:
    return "".join(record + "\n" for record in records).encode("utf-8", errors="replace")
