"""Lines of text in and out: split only at line feeds, so that numbers of lines never change on the way."""

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)


class LinesError(ValueError):
    """A file of lines cannot be used; the message names the file and the fix."""


def split_lines(data: bytes, name: str) -> list[str]:
    r"""Lines of UTF-8 text, split at "\n" alone (`b"a\nb\n"` -> ["a", "b"]); a "\r" before it is dropped.

    Bytes that are not UTF-8 are replaced, with one warning that names the lines.
    """
    raw = data.split(b"\n")
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
    """The lines of a file, or of standard input where `path` is None or "-"; see `split_lines`.

    Raises:
      LinesError: the file is missing or cannot be read.
    """
    if path is None or str(path) == "-":
        return split_lines(sys.stdin.buffer.read(), "standard input")
    try:
        return split_lines(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise LinesError(f"{path}: {error.strerror}; name a readable text file, a sentence a line") from error


def write_lines(path: str | os.PathLike[str] | None, lines: Iterable[str]) -> None:
    """Writes one line each, whole file or nothing; to standard output where `path` is None or "-".

    Raises:
      LinesError: the file cannot be written.
    """
    write_bytes(path, "".join(f"{one_line(line)}\n" for line in lines).encode("utf-8", errors="replace"))


def one_line(text: str) -> str:
    """Text with spaces in place of line feeds and carriage returns, which tokenizers that know bytes can make."""
    return text.replace("\n", " ").replace("\r", " ")


def write_bytes(path: str | os.PathLike[str] | None, data: bytes) -> None:
    """Writes a file, whole or not at all; to standard output where `path` is None or "-".

    Raises:
      LinesError: the file cannot be written.
    """
    if path is None or str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise LinesError(f"{path}: {error.strerror}; name a file in a writable directory") from error
    finally:
        temporary.unlink(missing_ok=True)
