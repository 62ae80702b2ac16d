"""Files that are written whole and durably: a new regular file takes the place of an old one, anything else is written through.

A path may be a link (its target is written, the link stays), or a FIFO, a device or an open descriptor (/dev/stdout), which
a rename would replace by a regular file. Errors are OSErrors, for the caller to turn into a message.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

StrPath = str | os.PathLike[str]


def target(path: StrPath) -> Path | None:
    """The regular file that `path` names, links resolved; it may be absent. None: a FIFO, a device or a descriptor.

    Raises:
      OSError: a directory, an empty name, or a loop of links.
    """
    text = os.fspath(path)
    if not text:
        raise FileNotFoundError(errno.ENOENT, "an empty file name", text)
    try:
        mode = os.stat(text).st_mode
    except FileNotFoundError:
        mode = None
    if text.endswith("/") if mode is None else stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), text)
    if mode is not None and (not stat.S_ISREG(mode) or _is_descriptor(text)):
        return None
    return Path(os.path.realpath(text))


def _is_descriptor(path: str) -> bool:
    """Whether a path leads to a descriptor of a process, whose file has another name or none."""
    for _ in range(40):  # as many links as Linux follows
        folder = Path(os.path.realpath(os.path.dirname(path))).parts
        if folder[:2] == ("/", "proc") and "fd" in folder:
            return True
        if not os.path.islink(path):
            return False
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return False


def check_writable(path: StrPath) -> None:
    """Tries whether `write_bytes` and `replace` could write `path`, without changing it; nothing is left behind.

    Raises:
      OSError: they could not.
    """
    file = target(path)
    if file is None:
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return
    _check_replaceable(file)
    with _temporary(file) as (temporary, _):
        temporary.unlink()


def check_directory(path: StrPath) -> None:
    """Tries whether files can be written into the directory `path`, which may be absent: then its parents are tried.

    Raises:
      OSError: they cannot, or `path` is no directory.
    """
    folder = Path(path).absolute()
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with _temporary(folder / "x") as (temporary, _):
        temporary.unlink()


def write_bytes(path: StrPath, data: bytes) -> None:
    """Writes a file: a regular one whole or not at all, and so that it survives a loss of power.

    Raises:
      OSError: it cannot be written.
    """
    file = target(path)
    if file is None:
        with open(path, "wb") as stream:
            stream.write(data)
        return
    _check_replaceable(file)
    with _temporary(file) as (temporary, stream):
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        _rename(temporary, file)


def replace(finished: StrPath, path: StrPath) -> None:
    """Puts a finished file, whose content is on the disk already, in the place of the regular file that `path` names.

    Raises:
      OSError: it cannot, or `path` names no regular file.
    """
    file = target(path)
    if file is None:
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    _check_replaceable(file)
    _rename(Path(finished), file)


def sync_directory(path: StrPath) -> None:
    """Makes the names in a directory survive a loss of power, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: StrPath) -> Iterator[BinaryIO]:
    """Opens a regular file to read and write, makes it if it is absent, and keeps it locked in the block.

    The kernel drops the lock when the process ends, however it ends. (The library filelock empties the file that it locks:
    it would need one more file beside each output.)

    Raises:
      BlockingIOError: another process holds the lock.
      OSError: the file cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                    raise
            # The process that held the lock may have renamed the file in the meantime.
            same = False
            with contextlib.suppress(FileNotFoundError):
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            if same:
                yield file
                return


def _check_replaceable(file: Path) -> None:
    # A rename would also replace a file that its owner made read-only.
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))


@contextlib.contextmanager
def _temporary(file: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file in the same directory, removed at the end unless it was renamed."""
    temporary = file.with_name(f".{secrets.token_hex(8)}.tmp")  # short: `file` may have the longest name possible
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield temporary, stream
    finally:
        temporary.unlink(missing_ok=True)


def _rename(finished: Path, file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.chmod(finished, stat.S_IMODE(file.stat().st_mode))  # the permissions of the old file hold for the new one
    os.replace(finished, file)
    sync_directory(file.parent)
