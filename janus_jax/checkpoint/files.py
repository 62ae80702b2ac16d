"""Checkpoints as files: finding, reading, writing, averaging.

A step directory holds everything: parameters, their moving average, optimizer state, step, resolved config, tokenizer
and metadata about its origin. Config and tokenizer are stored as bytes.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import janus_jax
from janus_jax import config as config_lib
from janus_jax.checkpoint.checksums import byte_checksums, check_bytes, checksums
from janus_jax.config import Config, ConfigError
from janus_jax.types import Params

# Words of errors that come from the state of the machine and not from a damaged file.
_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "Input/output error", "Stale file handle")


class CheckpointError(ValueError):
    """A checkpoint is missing or cannot be read; the message names the path and the fix."""


@dataclass(frozen=True)
class Loaded:
    """The parts of a checkpoint that decoding needs."""

    params: Params  # the moving average where there is one
    config: Config
    tokenizer: bytes
    step: int
    about: dict[str, Any]  # metadata: step, versions, origin

    @property
    def checksum(self) -> int | None:
        """Of the parameters, as stored; None in older checkpoints."""
        return _checksum(self.about)

    @property
    def one_space(self) -> bool:
        """Whether runs of white space were one space in training: here, or before the export that was imported."""
        return "data" in self.about or self.about.get("one_space", False)


# What checkpoints store about the training of the model: a copy or an average of them keeps it.
_ORIGIN = ("data", "revision", "versions", "jax", "from", "of_steps", "moving_average", "one_space")


def origin(about: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata of a checkpoint say about the training, for the metadata of a copy or an average."""
    kept = {name: about[name] for name in _ORIGIN if name in about}
    return kept | ({"moving_average": True} if "ema" in about.get("sums", {}) else {})


def load(path: str | Path, device: jax.Device | None = None) -> Loaded:
    """Reads a step directory, or the newest one below a run's work directory or its `checkpoints` directory.

    Args:
      path: the directory.
      device: that gets the parameters; None: the first local one.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _read_checked(find(path), lambda step_dir: _load(step_dir, device))


def _read_checked(step_dir: Path, read: Callable[[Path], Any]) -> Any:
    """The result of `read(step_dir)`; its errors, but those for the user, become a CheckpointError."""
    try:
        return read(step_dir)
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:  # Orbax raises any class for a damaged file
        if machine := machine_error(error):
            raise CheckpointError(
                f"{step_dir}: cannot be read now ({type(machine).__name__}: {first_line(machine)})"
            ) from error
        others = ", ".join(str(other) for other in step_directories(step_dir.parent) if other != step_dir)
        raise CheckpointError(
            f"{step_dir}: damaged ({type(error).__name__}: {first_line(error)}); "
            + (f"name another: {others}" if others else "there is no other beside it")
        ) from error


def _load(step_dir: Path, device: jax.Device | None) -> Loaded:
    metadata = stored_metadata(step_dir)
    about = metadata.custom_metadata or {}
    sums = about.get("sums", {})  # absent from older checkpoints
    params = "ema" if "ema" in metadata.metadata or "ema" in sums else "params"
    # Orbax reports items that it cannot read as absent or empty.
    if not jax.tree.leaves(metadata.metadata.get(params)):
        raise ValueError(f"{params} cannot be read")
    abstract = {name: _on_one_device(metadata.metadata[name], device) for name in (params, "assets")}
    with alone():
        stored = ocp.load_checkpointables(step_dir, abstract)
    if params in sums and checksums({params: stored[params]})[params] != sums[params]:
        raise ValueError("the parameters differ from those that were saved")
    check_bytes(stored["assets"], about)
    config = config_lib.from_json(_array_bytes(stored["assets"]["config"]).decode())
    tokenizer = _array_bytes(stored["assets"]["tokenizer"])
    return Loaded(stored[params], config, tokenizer, int(about.get("step", 0)), dict(about))


def stored_metadata(step_dir: Path) -> Any:
    """What Orbax knows of a step directory: the items' arrays, and the metadata with their checksums.

    Raises:
      ValueError, OSError: a file of them is damaged or cannot be read. Orbax itself would take it for absent, and no checksum would
        be compared.
    """
    json.loads((step_dir / "_CHECKPOINT_METADATA").read_bytes())
    for path in step_dir.glob("*/_METADATA"):
        path.read_bytes()
    return ocp.checkpointables_metadata(step_dir)


def alone() -> ocp.Context:
    """For reading without Orbax's barriers, at which all other processes would wait for minutes where one finds damage."""
    context, this = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = this, {this}
    return context


def machine_error(error: BaseException) -> BaseException | None:
    """The cause of an error that comes from the state of the machine and not from a damaged file, if there is one."""

    def of_machine(cause: BaseException) -> bool:
        # A file that is absent is damage; any other error that the system numbers is not.
        numbered = isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
        return numbered or isinstance(cause, MemoryError) or any(word in str(cause) for word in _NOT_DAMAGE)

    return next(filter(of_machine, causes(error)), None)


def _on_one_device(tree: Any, device: jax.Device | None = None) -> Any:
    """ShapeDtypeStructs of a tree on one local device: the stored shardings may name devices that this machine lacks."""
    sharding = jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is or holds a step directory, see `find`."""
    try:
        find(path)
    except CheckpointError:
        return False
    return True


def tokenizer(path: str | Path) -> bytes:
    """The tokenizer of a checkpoint (see `find`), without its parameters.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _read_checked(find(path), _tokenizer)


def checksum(path: str | Path) -> int | None:
    """The checksum of a checkpoint's parameters (see `find`), as stored; None in older ones.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _read_checked(find(path), lambda step: _checksum(stored_metadata(step).custom_metadata or {}))


def _checksum(about: Mapping[str, Any]) -> int | None:
    sums = about.get("sums", {})
    return sums.get("ema", sums.get("params"))


def config(path: str | Path) -> Config:
    """The config of a checkpoint (see `find`), without its parameters.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _read_checked(find(path), _config)


def _tokenizer(step_dir: Path) -> bytes:
    return _array_bytes(_assets(step_dir)["tokenizer"])


def _config(step_dir: Path) -> Config:
    return config_lib.from_json(_array_bytes(_assets(step_dir)["config"]).decode())


def _assets(step_dir: Path) -> dict[str, Any]:
    metadata = stored_metadata(step_dir)
    with alone():
        stored = ocp.load_checkpointables(step_dir, {"assets": _on_one_device(metadata.metadata["assets"])})
    assets = stored["assets"]
    check_bytes(assets, metadata.custom_metadata or {})
    return assets


def find(path: str | Path) -> Path:
    """The step directory that `path` is or holds; see `load`."""
    path = Path(os.path.expanduser(path)).absolute()
    try:
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: no such directory; give a checkpoint's step directory or a run's work directory"
            )
        if (path / "assets").is_dir():
            return path
        steps = step_directories(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}: {error.filename}); give read permission, or name another directory"
        ) from error
    if not steps:
        raise CheckpointError(f"{path}: holds no complete checkpoint; has the run saved one yet?")
    return steps[-1]


def step_directories(path: str | Path) -> list[Path]:
    """Complete step directories of a run, oldest first."""
    path = Path(os.path.expanduser(path)).absolute()
    below = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    directories = [p for p in below.iterdir() if p.name.isdigit() and _has_assets(p)]
    return sorted(directories, key=lambda p: int(p.name))


def _has_assets(path: Path) -> bool:
    """Whether a step directory holds config and tokenizer; a process that is killed while it deletes may leave the folder."""
    return (path / "assets").is_dir() and any((path / "assets").iterdir())


def write(path: str | Path, params: Params, config: Config, tokenizer: bytes, about: dict[str, Any]) -> None:
    """Writes a checkpoint without optimizer state, for averages and imports.

    Args:
      path: the step directory; must not exist.
      params: the parameters.
      config: the resolved config.
      tokenizer: its bytes.
      about: metadata about the origin.

    Raises:
      CheckpointError: `path` exists.
    """
    path = Path(os.path.expanduser(path)).absolute()
    if path.exists():
        raise CheckpointError(f"{path}: exists already; remove it or name another directory")
    assets = {"config": bytes_array(config_lib.to_json(config).encode()), "tokenizer": bytes_array(tokenizer)}
    sums = {"sums": checksums({"params": params}), "asset_sums": byte_checksums(assets)}
    about = {"step": 0, "janus_jax": janus_jax.__version__} | about | sums
    ocp.save_checkpointables(path, {"params": params, "assets": assets}, custom_metadata=about)


def average(trees: Sequence[Params]) -> Params:
    """The mean of parameter trees, leaf by leaf, in float64 and then rounded to float32."""
    return jax.tree.map(lambda *leaves: np.mean(np.stack(leaves).astype(np.float64), axis=0).astype(np.float32), *trees)


def bytes_array(data: bytes) -> np.ndarray:
    """Bytes as an array, the form in which a checkpoint stores them."""
    return np.frombuffer(data, np.uint8)


def _array_bytes(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it: Orbax hides the error of a file behind one of its own."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; messages of Orbax fill pages."""
    return next(iter(str(error).strip().splitlines()), "")[:300]
