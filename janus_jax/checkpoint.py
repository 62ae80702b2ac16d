"""Checkpoints: the only caller of Orbax.

A step directory holds everything: parameters, their moving average, optimizer state, step, resolved config, tokenizer
and how it was made. Config and tokenizer go in and out as opaque bytes. Orbax writes to a temporary name and renames,
so that a step directory either is complete or is not there.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import janus_jax
from janus_jax import config as config_lib
from janus_jax.config import Config, TrainConfig
from janus_jax.types import Params, TrainState

_policies = ocp.training.preservation_policies


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


class Checkpoints:
    """The checkpoints of a run, saved in the background; keeps the last n and the best by a metric.

    Args:
      directory: where step directories go.
      config: the run's; its retention settings are used, and it is stored in every checkpoint.
      tokenizer: stored likewise.
    """

    def __init__(self, directory: Path, config: Config, tokenizer: bytes):
        # Orbax logs every retention decision; its errors still come through.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._assets = {
            "config": _bytes_array(config_lib.to_json(config).encode()),
            "tokenizer": _bytes_array(tokenizer),
        }
        self.directory = Path(directory).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_retention(config.train),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    @property
    def window(self) -> dict[str, Any]:
        """The `window` that the newest complete checkpoint was saved with; {} without one."""
        if self.latest is None:
            return {}
        about = ocp.checkpointables_metadata(self.directory / str(self.latest)).custom_metadata
        return dict((about or {}).get("window", {}))

    def save(
        self, state: TrainState, metrics: dict[str, float] | None = None, window: dict[str, Any] | None = None
    ) -> None:
        """Starts saving `state`; returns once it is copied, before it is written.

        Args:
          state: to save; the caller may donate it afterwards.
          metrics: of this step's evaluation; what "best" is decided by.
          window: the log's unfinished interval, JSON.
        """
        step = int(state.step)
        self.wait()
        self._checkpointer.save_checkpointables_async(
            step,
            _checkpointables(state) | {"assets": self._assets},
            metrics=metrics,
            custom_metadata={
                "step": step,
                "janus_jax": janus_jax.__version__,
                "jax": jax.__version__,
                "made_by": "train",
                "window": window or {},
            },
        )

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest checkpoint's state in the shapes and shardings of `abstract`.

        Raises:
          CheckpointError: the stored state has another structure than the config's.
        """
        step = self.latest
        try:
            stored = self._checkpointer.load_checkpointables(step, _checkpointables(abstract))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.directory / str(step)}: does not fit this config ({error}); use the config that the run began "
                "with, or another --workdir"
            ) from error
        return TrainState(stored["progress"]["step"], stored["params"], stored["opt_state"], stored.get("ema"))

    def wait(self) -> None:
        """Blocks until what is being saved is complete; raises what went wrong."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits, then releases the directory."""
        self._checkpointer.close()


def load(path: str | Path) -> Loaded:
    """Reads a step directory, or the newest one below a run's work directory or its `checkpoints` directory.

    Raises:
      CheckpointError: nothing there, or not a checkpoint.
    """
    step_dir = find(path)
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
    assets = {"config": _bytes_array(config_lib.to_json(config).encode()), "tokenizer": _bytes_array(tokenizer)}
    about = {"step": 0, "janus_jax": janus_jax.__version__} | about
    ocp.save_checkpointables(path, {"params": params, "assets": assets}, custom_metadata=about)


def average(trees: Sequence[Params]) -> Params:
    """The mean of parameter trees, leaf by leaf, in float64 before rounding to float32."""
    return jax.tree.map(lambda *leaves: np.mean(np.stack(leaves).astype(np.float64), axis=0).astype(np.float32), *trees)


def _retention(train: TrainConfig) -> Any:
    latest = _policies.LatestN(train.keep_last)
    if not train.keep_best:
        return latest
    worst = math.inf if train.best_mode == "min" else -math.inf

    def value(metrics: dict[str, float]) -> float:
        # A figure that is missing or not a number must not upset the order of the others.
        found = metrics.get(train.best_metric, worst)
        return found if math.isfinite(found) else worst

    best = _policies.BestN(
        n=train.keep_best,
        get_metric_fn=value,
        reverse=train.best_mode == "min",  # the last n in sorted order are kept
        keep_checkpoints_without_metrics=False,
    )
    return _policies.AnyPreservationPolicy([latest, best])


def _checkpointables(state: TrainState) -> dict[str, Any]:
    items = {"progress": {"step": state.step}, "params": state.params, "opt_state": state.opt_state}
    return items if state.ema is None else items | {"ema": state.ema}


def _bytes_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _array_bytes(array: Any) -> bytes:
    return np.asarray(array).tobytes()
