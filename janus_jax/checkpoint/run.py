"""The checkpoints of a run: saved in the background, kept by rule, restored from the newest that is intact.

Orbax writes to a temporary name and renames, so that a step directory either is complete or is not there. Check sums tell whether what is
read is what was saved.
"""

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

import janus_jax
from janus_jax import config as config_lib
from janus_jax import processes
from janus_jax.checkpoint.files import CheckpointError, bytes_array, first_line, step_directories
from janus_jax.checkpoint.sums import check_sums
from janus_jax.config import Config, TrainConfig
from janus_jax.types import TrainState

_policies = ocp.training.preservation_policies
# What these errors tell of is the machine's state, not the file's.
_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "Input/output error", "Stale file handle")
_FITTING = "use the config that the run began with, or another --workdir"


class Checkpoints:
    """The checkpoints of a run, saved in the background; keeps the last n and the best by a metric.

    Call `restore` first, once.

    Args:
      directory: where step directories go.
      config: the run's; its retention settings are used, and it is stored in every checkpoint.
      tokenizer: stored likewise.
    """

    def __init__(self, directory: Path, config: Config, tokenizer: bytes):
        # Orbax logs every retention decision, and a page for each error, which it raises too (see `_guarded`).
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._assets = {
            "config": bytes_array(config_lib.to_json(config).encode()),
            "tokenizer": bytes_array(tokenizer),
        }
        self._train = config.train
        self.directory = Path(directory).absolute()
        self.notes: list[str] = []  # what `restore` has to tell
        self._checkpointer: Any = None

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint. (Orbax's own list has those that are still being written.)"""
        steps = step_directories(self.directory) if self.directory.is_dir() else []
        return int(steps[-1].name) if steps else None

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest intact checkpoint's state, in the shapes and shardings of `abstract`, and the `window` it was saved with.

        Older ones are tried where the newest is damaged: cannot be read, or is not what was saved. Once one of them is found intact, the
        damaged are renamed to damaged-STEP, so that they are neither found again nor lost; `notes` says so.

        Returns:
          None if there was no checkpoint.

        Raises:
          CheckpointError: the stored state has another structure than the config's, the machine cannot hold it, or no
            checkpoint is intact.
        """
        found, damaged = None, {}
        # The first process's list: others may see a directory of the network a little later.
        for name in processes.gathered(self._steps())[0]:
            found, problem = self._try(self.directory / name, abstract)
            if not problem:
                break
            damaged[name] = problem
        told = "; ".join(f"{name} ({problem})" for name, problem in damaged.items())
        if found is None and (damaged or self._set_aside()):
            raise CheckpointError(
                f"{self.directory}: no checkpoint can be read{': ' * bool(told)}{told}. Put back a copy of one under its step as "
                "name, or use another --workdir to begin anew"
            )
        if damaged:
            self._rename(damaged)
            self.notes.append(
                f"checkpoint {told} is damaged and kept as damaged-STEP; continues from step {int(found[0].step)}"
            )
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_retention(self._train),
            cleanup_tmp_directories=True,
        )
        return found

    def _try(self, path: Path, abstract: TrainState) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        """What `_read` gives, and "", on all processes; or None and how it is damaged, for one of them at least."""
        found, outcome = None, ["", ""]  # what makes it useless here, and how it is damaged
        try:
            found = _read(path, abstract)
        except CheckpointError as error:
            outcome[0] = str(error)
        except Exception as error:  # whatever a damaged file makes Orbax raise
            told = f"{type(error).__name__}: {first_line(error)}"
            here = isinstance(error, MemoryError | PermissionError) or any(word in told for word in _NOT_DAMAGE)
            outcome[0 if here else 1] = f"{path}: cannot be read now ({told})" if here else told
        outcomes = processes.gathered(outcome)
        if refused := next((one for one, _ in outcomes if one), ""):
            raise CheckpointError(refused)
        problem = next((damage for _, damage in outcomes if damage), "")
        return (None if problem else found), problem

    def _steps(self) -> list[str]:
        """Names of the step directories, whole or not, newest first."""
        names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
        return sorted((name for name in names if name.isdigit()), key=int, reverse=True)

    def _set_aside(self) -> list[Path]:
        return list(self.directory.glob("damaged-*")) if self.directory.is_dir() else []

    def _rename(self, names: Iterable[str]) -> None:
        with processes.together():  # nobody goes on before it is done
            for name in names if jax.process_index() == 0 else ():
                free = (f"damaged-{name}{again}" for again in ("", *(f".{n}" for n in range(2, 1000))))
                target = next(self.directory / one for one in free if not (self.directory / one).exists())
                (self.directory / name).rename(target)

    def save(
        self, state: TrainState, metrics: dict[str, float] | None = None, window: dict[str, Any] | None = None
    ) -> None:
        """Starts saving `state`; returns once it is copied, before it is written.

        Args:
          state: to save; the caller may donate it afterwards.
          metrics: of this step's evaluation; what "best" is decided by.
          window: the log's unfinished interval, JSON.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        self.wait()
        step, items = int(state.step), _checkpointables(state)
        about = {
            "step": step,
            "janus_jax": janus_jax.__version__,
            "jax": jax.__version__,
            "made_by": "train",
            "window": window or {},
            "sums": check_sums(items),
        }
        self._guarded(
            lambda: self._checkpointer.save_checkpointables_async(
                step, items | {"assets": self._assets}, metrics=metrics, custom_metadata=about
            )
        )

    def wait(self) -> None:
        """Blocks until what is being saved is complete; raises CheckpointError if it could not be written."""
        self._guarded(self._checkpointer.wait)

    def close(self) -> None:
        """Waits, then releases the directory."""
        if self._checkpointer is not None:
            self._guarded(self._checkpointer.close)

    def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except jax.errors.JaxRuntimeError:  # of the devices, or of a process that is gone
            raise
        except Exception as error:  # of Orbax, its threads and the file system below
            raise unwritable(self.directory, error) from error


def unwritable(directory: Path, error: Exception) -> CheckpointError:
    """The error to raise where a run's directory of checkpoints, or what lies beside it, could not be written."""
    steps = [path.name for path in step_directories(directory)] if directory.is_dir() else []
    intact = f"complete are steps {', '.join(steps)}" if steps else "there is no complete checkpoint yet"
    return CheckpointError(
        f"{directory}: could not be written ({type(error).__name__}: {first_line(error)}); {intact}. Make room or give write "
        "permission; the same command continues from the newest"
    )


def _read(path: Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """State and window of a step directory; ValueError if it is not what was saved, CheckpointError if it never fitted."""
    if not (path / "assets").is_dir():
        raise ValueError("holds no assets (config and tokenizer)")
    found, wanted = ocp.checkpointables_metadata(path), _checkpointables(abstract)
    about = found.custom_metadata or {}
    sums = about.get("sums", {})  # which older checkpoints lack
    # Orbax describes what it cannot read as absent or as nothing.
    unread = [name for name in sums if not jax.tree.leaves(found.metadata.get(name))]
    if unread:
        raise ValueError(f"{' and '.join(unread)} cannot be read")
    _check_structure(path, found.metadata, wanted)
    stored = ocp.load_checkpointables(path, wanted)
    read = check_sums({name: stored[name] for name in sums})
    wrong = sorted(name for name in sums if sums[name] != read[name])
    if wrong:
        raise ValueError(f"the numbers of {' and '.join(wrong)} are not those that were saved")
    state = TrainState(stored["progress"]["step"], stored["params"], stored["opt_state"], stored.get("ema"))
    return state, dict(about.get("window", {}))


def _check_structure(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        # A chain of transformations is a tuple here and a list or dict of numbers in the stored metadata.
        names = (
            "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in p) for p, _ in leaves
        )
        return {name: tuple(leaf.shape) for name, (_, leaf) in zip(names, leaves, strict=True)}

    for part, tree in wanted.items():
        if part not in stored:
            raise CheckpointError(f"{path}: holds no {part}, which this config has; {_FITTING}")
        was, now = shapes(stored[part]), shapes(tree)
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                told = f"{part}/{name} is {was.get(name, 'absent')}, by this config {now.get(name, 'absent')}"
                raise CheckpointError(f"{path}: does not fit this config ({told}); {_FITTING}")


def _retention(train: TrainConfig) -> Any:
    kept = [_policies.LatestN(train.keep_last)]
    if train.keep_every:
        kept.append(_policies.EveryNSteps(train.keep_every))
    if not train.keep_best:
        return _policies.AnyPreservationPolicy(kept)
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
    return _policies.AnyPreservationPolicy([*kept, best])


def _checkpointables(state: TrainState) -> dict[str, Any]:
    items = {"progress": {"step": state.step}, "params": state.params, "opt_state": state.opt_state}
    return items if state.ema is None else items | {"ema": state.ema}
