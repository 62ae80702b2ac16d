"""Checkpoints as files: finding, reading, writing, averaging.

A step directory holds everything: parameters, their moving average, optimizer state, step, resolved config, tokenizer
and how it was made. Config and tokenizer go in and out as opaque bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import janus_jax
from janus_jax import config as config_lib
from janus_jax.checkpoint.sums import check_sums
from janus_jax.config import Config, ConfigError
from janus_jax.types import Params


class CheckpointError(ValueError):
    """A checkpoint is missing or cannot be read; the message names the path and the fix."""


@dataclass(frozen=True)
class Loaded:
    """What decoding needs of a checkpoint."""

    params: Params  # the moving average where there is one
    config: Config
    tokenizer: bytes
    step: int
    about: dict[str, Any]  # how it was made


def load(path: str | Path) -> Loaded:
    """Reads a step directory, or the newest one below a run's work directory or its `checkpoints` directory.

    Raises:
      CheckpointError: nothing there, or not a checkpoint.
    """
    step_dir = find(path)
    try:
        return _load(step_dir)
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:  # whatever a damaged file makes Orbax raise
        others = ", ".join(str(other) for other in step_directories(step_dir.parent) if other != step_dir)
        raise CheckpointError(
            f"{step_dir}: damaged ({type(error).__name__}: {first_line(error)}); "
            + (f"name another: {others}" if others else "there is no other beside it")
        ) from error


def _load(step_dir: Path) -> Loaded:
    found = ocp.checkpointables_metadata(step_dir)
    which = "ema" if "ema" in found.metadata else "params"
    # One device, whatever the run was split over: the metadata's own shardings may name devices that are not here.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), found.metadata[name]
        )
        for name in (which, "assets")
    }
    stored = ocp.load_checkpointables(step_dir, abstract)
    about = found.custom_metadata or {}
    if which in about.get("sums", {}) and check_sums({which: stored[which]})[which] != about["sums"][which]:
        raise ValueError("the parameters are not those that were saved")
    config = config_lib.from_json(_array_bytes(stored["assets"]["config"]).decode())
    tokenizer = _array_bytes(stored["assets"]["tokenizer"])
    return Loaded(stored[which], config, tokenizer, int(about.get("step", 0)), dict(about))


def is_checkpoint(path: str | Path) -> bool:
    """Whether `find` would find a step directory there."""
    try:
        find(path)
    except CheckpointError:
        return False
    return True


def tokenizer(path: str | Path) -> bytes:
    """The tokenizer of a checkpoint (see `find`), without its parameters."""
    step_dir = find(path)
    assets = ocp.checkpointables_metadata(step_dir).metadata["assets"]
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), assets)
    return _array_bytes(ocp.load_checkpointables(step_dir, {"assets": abstract})["assets"]["tokenizer"])


def find(path: str | Path) -> Path:
    """The step directory that `path` is or holds; see `load`."""
    path = Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such directory; give a checkpoint's step directory or a run's work directory"
        )
    if (path / "assets").is_dir():
        return path
    steps = step_directories(path)
    if not steps:
        raise CheckpointError(f"{path}: holds no complete checkpoint; has the run saved one yet?")
    return steps[-1]


def step_directories(path: str | Path) -> list[Path]:
    """Complete step directories of a run, oldest first."""
    path = Path(path).absolute()
    below = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = [p for p in below.iterdir() if p.name.isdigit() and (p / "assets").is_dir()]
    return sorted(found, key=lambda p: int(p.name))


def write(path: str | Path, params: Params, config: Config, tokenizer: bytes, about: dict[str, Any]) -> None:
    """Writes a checkpoint without optimizer state: what averaging and imports produce.

    Raises:
      CheckpointError: `path` exists.
    """
    path = Path(path).absolute()
    if path.exists():
        raise CheckpointError(f"{path}: exists already; remove it or name another directory")
    assets = {"config": bytes_array(config_lib.to_json(config).encode()), "tokenizer": bytes_array(tokenizer)}
    about = {"step": 0, "janus_jax": janus_jax.__version__} | about
    ocp.save_checkpointables(path, {"params": params, "assets": assets}, custom_metadata=about)


def average(trees: Sequence[Params]) -> Params:
    """The mean of parameter trees, leaf by leaf, in float64 before rounding to float32."""
    return jax.tree.map(lambda *leaves: np.mean(np.stack(leaves).astype(np.float64), axis=0).astype(np.float32), *trees)


def bytes_array(data: bytes) -> np.ndarray:
    """Bytes as an array, as which they are stored."""
    return np.frombuffer(data, np.uint8)


def _array_bytes(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def first_line(error: Exception) -> str:
    """The beginning of what an error says; Orbax's go on for pages."""
    return next(iter(str(error).strip().splitlines()), "")[:300]
