"""The work directory of a run: its lock, the settings that the run started with, and which of them may change at a resume."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from janus_jax import config as config_lib
from janus_jax import files
from janus_jax.config import Config, ConfigError, settings_without_rows
from janus_jax.metrics import read_metrics

# Settings that may change at a resume, since the steps that are done don't depend on them.
FREE_SETTINGS = {
    "data.prepared",
    "data.test",
    "data.tfds_data_dir",
    "data.train",
    "data.valid",
    "data.workers",
    "text.model",
    "train.best_metric",
    "train.best_mode",
    "train.checkpoint_every",
    "train.eval_every",
    "train.eval_sentences",
    "train.keep_best",
    "train.keep_every",
    "train.keep_last",
    "train.log_every",
    "train.max_bad_steps",
    "train.patience",
    "train.spike",
    "train.steps",
}  # those that name places too: the prepared data are compared themselves, see `Prepared.contents`
_LOCK, _CONFIG, _DATA = "lock", "config.json", "data.json"
# What a file system answers that has no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def has_checkpoint(workdir: Path) -> bool:
    """Whether the run has saved a checkpoint, intact or damaged."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and any(
        path.name.isdigit() or path.name.startswith("damaged-") for path in checkpoints.iterdir()
    )


@contextlib.contextmanager
def workdir_lock(workdir: Path, write: bool = True) -> Iterator[None]:
    """Creates the work directory if it is absent, and locks it against other runs within the block.

    The lock ends with the process, also when the process is killed. A file system without locks gives no protection.

    Args:
      workdir: of the run.
      write: False on the processes that write nothing: they take no lock.

    Raises:
      ConfigError: another run has the lock (the message names its host and process), or the directory cannot be written.
    """
    if not write:
        yield
        return
    path = workdir / _LOCK
    # No fallback to a lock whose file must be removed: a killed process would leave it behind.
    lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        holder = path.read_text(errors="replace").strip() or "it has just started"
        raise ConfigError(
            f"{workdir}: is in use by another run ({holder}); wait for it, stop it, or name another --workdir"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise ConfigError(
                f"{workdir}: cannot be written ({error.strerror}); give write permission or name another --workdir"
            ) from error
    try:
        path.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        yield
    finally:
        lock.release()


def check_workdir_is_shared(workdir: Path, seconds: float = 30.0) -> None:
    """Checks that this process sees the work directory that the first process has locked.

    Args:
      workdir: of the run.
      seconds: to wait, since a network file system may show the lock file late.

    Raises:
      ConfigError: the lock file doesn't appear.
    """
    end = time.monotonic() + seconds
    while not (workdir / _LOCK).exists():
        if time.monotonic() > end:
            raise ConfigError(
                f"{workdir}: on {socket.gethostname()} it isn't the directory of the first process; name a directory that all "
                "hosts share"
            )
        time.sleep(0.5)


def changed_settings(config: Config, contents: str, workdir: Path, allow_changes: bool) -> list[str]:
    """What differs from the settings and the data that the run started with.

    Args:
      config: of this start.
      contents: digest of the prepared data, see `Prepared.contents`.
      workdir: of the run.
      allow_changes: whether settings that change what is computed may differ.

    Returns:
      A text per difference; none for a run without a checkpoint.

    Raises:
      ConfigError: something differs that may not, a file is damaged, or the checkpoints of the run are gone.
    """
    if not (workdir / _CONFIG).exists():
        return []
    if not has_checkpoint(workdir):
        _check_none_was_saved(workdir)
        return []
    changed = _differences(_read(workdir / _CONFIG, config_lib.from_json), config)
    old_contents = contents  # older runs have no digest
    if (workdir / _DATA).exists():
        old_contents = _read(workdir / _DATA, _contents)
    if old_contents != contents:
        changed.append(f"the examples in {config.data.prepared}: {old_contents}, now {contents}")
    if changed and not allow_changes:
        raise ConfigError(
            f"{workdir}: this run was started with other settings ({'; '.join(changed)}); change them back, use another "
            "--workdir, or resume with --allow_changes"
        )
    return changed


def _check_none_was_saved(workdir: Path) -> None:
    """Raises ConfigError if a run without checkpoints must have had some.

    A run makes the folder before its first step. An evaluation waits for the checkpoint of its step, and the second
    checkpoint for the first.
    """
    records = read_metrics(workdir / "metrics.jsonl")
    if not records:
        return
    folder, last = workdir / "checkpoints", records[-1]["step"]
    every = _read(workdir / _CONFIG, config_lib.from_json).train.checkpoint_every
    saved = any("valid/loss" in record and record["step"] % every == 0 for record in records)
    if saved or last > 2 * every or not folder.is_dir():
        raise ConfigError(
            f"{workdir}: metrics.jsonl goes to step {last}, but {folder} holds no checkpoint; restore a copy of its checkpoints, "
            "or remove metrics.jsonl to begin again"
        )


def depends_on_steps(config: Config) -> bool:
    """Whether another length of the run would mean another learning rate or weight at every step."""
    return config.optimizer.schedule in ("polynomial", "cosine") or config.objective.ar_first > 0


def save_settings(config: Config, contents: str, workdir: Path) -> None:
    """Writes the settings and the digest of the data for `changed_settings`. Call it once a checkpoint is restored."""
    for name, text in ((_CONFIG, config_lib.to_json(config)), (_DATA, json.dumps({"contents": contents}))):
        files.write_bytes(workdir / name, (text + "\n").encode())


def _read(path: Path, read: Callable[[str], Any]) -> Any:
    """`read` of a file's text; any error becomes a ConfigError with the fix."""
    try:
        return read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = "settings" if path.name == _CONFIG else "digest of the data"
        raise ConfigError(
            f"{path}: does not hold the {what} that the run started with ({type(error).__name__}: {error}); restore a copy, or "
            "remove the file to resume without comparing them"
        ) from error


def _contents(text: str) -> str:
    contents = json.loads(text)["contents"]
    if not isinstance(contents, str):
        raise ValueError("'contents' is no text")
    return contents


def _differences(old: Config, new: Config) -> list[str]:
    free = FREE_SETTINGS - ({"train.steps"} if depends_on_steps(new) else set())
    # Older versions accepted settings without effect.
    free |= settings_without_rows(old.objective).keys() & settings_without_rows(new.objective).keys()
    pairs = zip(config_lib.leaves(old), config_lib.leaves(new), strict=True)
    return [
        f"{name}: {before!r}, now {now!r}"
        for (name, before), (_, now) in pairs
        if before != now and name not in free and not name.startswith(("decode.", "parallel."))
    ]
