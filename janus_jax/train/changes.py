"""The directory of a run: who may write it, the settings that it began with, and what may differ when it goes on."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from janus_jax import config as config_lib
from janus_jax.config import Config, ConfigError

# Settings that may change between the parts of a run without changing what it computes up to the step where it stands.
_FREE = {"train.steps", "train.log_every", "train.eval_every", "train.eval_sentences", "train.checkpoint_every"} | {
    "train.keep_last", "train.keep_best", "train.keep_every", "train.best_metric", "train.best_mode", "train.max_bad_steps", "train.spike", "data.workers"
} | {"data.prepared"}  # fmt: skip


def begun(workdir: Path) -> bool:
    """Whether the run has saved a checkpoint, be it whole or damaged."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and any(
        path.name.isdigit() or path.name.startswith("damaged-") for path in checkpoints.iterdir()
    )


@contextlib.contextmanager
def held(workdir: Path, write: bool = True) -> Iterator[None]:
    """The directory of a run, made if it is absent, and held against other runs as long as this lasts.

    The lock goes with the process, however that ends. Where the file system knows none, nothing is held.

    Args:
      workdir: of the run.
      write: False on the processes that write nothing, which hold nothing.

    Raises:
      ConfigError: another process holds it, or nothing can be written there.
    """
    if not write:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a+")
    except OSError as error:
        raise ConfigError(
            f"{workdir}: cannot be written ({error.strerror}); give write permission or name another --workdir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{workdir}: is in use by another run ({file.read().strip() or 'which just started'}); wait for it, stop it, or name "
                "another --workdir"
            ) from None
        except OSError:  # no locks on this file system
            pass
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        file.flush()
        yield


def check_shared(workdir: Path, seconds: float = 30.0) -> None:
    """Raises ConfigError unless the directory that the first process holds is found here too (of the network: soon)."""
    end = time.monotonic() + seconds
    while not (workdir / "lock").exists():
        if time.monotonic() > end:
            raise ConfigError(
                f"{workdir}: on {socket.gethostname()} isn't what the first process sees; name a directory that all hosts share"
            )
        time.sleep(0.5)


def changes_since(config: Config, contents: str, workdir: Path, allow_changes: bool) -> list[str]:
    """What differs from the settings and the data that the run began with.

    Args:
      config: of this part of the run.
      contents: of the prepared data, see `Prepared.contents`.
      workdir: of the run.
      allow_changes: whether settings that change what is computed may differ.

    Raises:
      ConfigError: something differs, and may not.
    """
    path, data, changed = workdir / _CONFIG, workdir / _DATA, []
    if not begun(workdir) or not path.exists():
        return []
    changed = _changed(config_lib.from_json(path.read_text()), config)
    was = json.loads(data.read_text())["contents"] if data.exists() else contents  # older runs kept none
    if was != contents:
        changed.append(f"the examples in {config.data.prepared}: {was}, now {contents}")
    if changed and not allow_changes:
        raise ConfigError(
            f"{workdir}: this run was begun with other settings ({'; '.join(changed)}); change them back, use "
            "another --workdir, or go on all the same with --allow_changes"
        )
    return changed


def keep(config: Config, contents: str, workdir: Path) -> None:
    """Keeps settings and what tells the data from others beside the run, which has found its checkpoint by now."""
    for name, kept in ((_CONFIG, config_lib.to_json(config)), (_DATA, json.dumps({"contents": contents}))):
        partial = (workdir / name).with_suffix(".partial")
        partial.write_text(kept + "\n")
        partial.replace(workdir / name)


_CONFIG, _DATA = "config.json", "data.json"


def _changed(old: Config, new: Config) -> list[str]:
    # These schedules stretch over the whole run: another length is another learning rate or weight at every step.
    stretched = new.optimizer.schedule in ("polynomial", "cosine") or new.objective.ar_first
    free = _FREE - ({"train.steps"} if stretched else set())
    pairs = zip(config_lib.leaves(old), config_lib.leaves(new), strict=True)
    return [
        f"{name}: {was!r}, now {now!r}"
        for (name, was), (_, now) in pairs
        if was != now and name not in free and not name.startswith(("decode.", "parallel."))
    ]
