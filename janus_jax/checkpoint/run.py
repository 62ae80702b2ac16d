"""The checkpoints of a run: saved in the background, deleted by retention rules, restored from the newest intact one.

Orbax writes to a temporary name and then renames. So a step directory is complete or absent. Checksums show whether the
stored numbers are those that were saved.
"""

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import janus_jax
from janus_jax import config as config_lib
from janus_jax import processes, provenance
from janus_jax.checkpoint.checksums import byte_checksums, check_bytes, checksums
from janus_jax.checkpoint.files import (
    CheckpointError,
    alone,
    bytes_array,
    causes,
    first_line,
    machine_error,
    step_directories,
    stored_metadata,
)
from janus_jax.config import Config, TrainConfig, last_change, scheduled
from janus_jax.types import TrainState

_STRUCTURE_FIX = "use the config that the run started with, or another --workdir"


# An array that all devices have is written in parts, one a device, only if these are large: each part costs a program.
_SAVING = ocp.Context()
_SAVING.array.saving.min_slice_bytes_for_replica_parallel = 2**20


class Checkpoints:
    """The checkpoints of a run, saved in the background. The last n, and the best ones by a metric, are kept.

    Call `restore` once, before any other method.

    Args:
      directory: gets the step directories.
      config: the configuration of the run, with the retention settings. Every checkpoint stores it.
      tokenizer: the tokenizer as bytes. Every checkpoint stores them.
      evaluations: the metrics of the evaluations so far, by step. The caller adds later ones, each after its checkpoint
        is saved: an evaluation that fails then costs no steps.
      data: digest of the prepared data. Every checkpoint stores it, with the git revision and the versions of this process.
      evaluated: whether the run has a validation split.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        tokenizer: bytes,
        evaluations: dict[int, Mapping[str, float]],
        *,
        data: str | None = None,
        evaluated: bool = True,
    ):
        # Orbax logs every retention decision and a page for each error. It also raises the errors.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._assets = {
            "config": bytes_array(config_lib.to_json(config).encode()),
            "tokenizer": bytes_array(tokenizer),
        }
        self._train, self._evaluations = config.train, evaluations
        # With patience the best ones are those that it compares.
        self._settled = last_change(scheduled(config)) if config.train.patience else 0
        self._origin = {"data": data, "revision": provenance.revision(), "versions": provenance.versions()}
        self.directory = Path(directory).absolute()
        self.notes: list[str] = []  # messages of `restore`, for the log
        self._evaluated = evaluated
        self._unrecorded: frozenset[int] = frozenset()  # steps that were evaluated, but whose record is lost
        self._checkpointer: Any = None

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint. (The list of Orbax includes those that are still being written.)"""
        steps = step_directories(self.directory) if self.directory.is_dir() else []
        return int(steps[-1].name) if steps else None

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest intact checkpoint.

        A checkpoint is damaged if it cannot be read, or if its numbers are not those that were saved. Then the next
        older one is tried. After an intact one is read, the damaged ones are renamed to damaged-STEP: the next restore
        ignores them, and nothing is deleted. A message in `notes` reports this.

        Args:
          abstract: the state as ShapeDtypeStructs with shardings.

        Returns:
          The state in the shapes and shardings of `abstract`, and the `interval` that was saved with it. None if there
          is no checkpoint.

        Raises:
          CheckpointError: the stored state has another structure than the config's, the machine cannot hold it, or no
            checkpoint is intact.
        """
        restored, damaged = None, {}
        # All processes use the list of the first one: changes of a network directory may reach the others later.
        for name in processes.all_gather(self._steps())[0]:
            restored, problem = self._read_everywhere(self.directory / name, abstract)
            if not problem:
                break
            damaged[name] = problem
        problems = "; ".join(f"{name} ({problem})" for name, problem in damaged.items())
        if restored is None and (damaged or self._damaged_before()):
            raise CheckpointError(
                f"{self.directory}: no checkpoint can be read{': ' * bool(problems)}{problems}. Restore a copy of one (the name of its "
                "directory is its step), or use another --workdir to start from the beginning"
            )
        if damaged:
            self._rename(damaged)
            self.notes.append(
                f"checkpoint {problems} is damaged and kept as damaged-STEP; resumes from step {int(restored[0].step)}"
            )
        self._keep_unrecorded(restored)
        with processes.fail_together():
            self._remove_surplus()
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_Retention(self._kept),
            cleanup_tmp_directories=True,
            context=_SAVING,
        )
        return restored

    def _read_everywhere(
        self, path: Path, abstract: TrainState
    ) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        """Reads a checkpoint on all processes.

        Returns:
          State and interval, and ""; or, if the checkpoint is damaged, None and a description of the damage.

        Raises:
          CheckpointError: on some process the checkpoint doesn't fit, or the machine cannot read it now.
        """
        # The processes compute the checksums together, so all of them must have read their parts.
        stored, damage = self._everywhere(path, lambda: _read(path, abstract))
        return self._everywhere(path, lambda: _verified(*stored)) if stored else (None, damage)

    @staticmethod
    def _everywhere(path: Path, work: Callable[[], Any]) -> tuple[Any, str]:
        """The result of `work` on this process and ""; or, if it found damage on any process, None and a description."""
        result, refusal, damage = None, "", ""
        try:
            result = work()
        except CheckpointError as error:
            refusal = str(error)
        except Exception as error:  # Orbax raises any class for a damaged file
            if any("tree structures do not match" in str(cause) for cause in causes(error)):
                # The arrays are the same ones, see `_check_structure`: an optimizer with another setting keeps them elsewhere.
                refusal = f"{path}: does not fit this config (the optimizer's state has another form); {_STRUCTURE_FIX}"
            elif machine := machine_error(error):
                refusal = f"{path}: cannot be read now ({type(machine).__name__}: {first_line(machine)})"
            else:
                damage = f"{type(error).__name__}: {first_line(error)}"
        refusals, damages = zip(*processes.all_gather([refusal, damage]), strict=True)
        if any(refusals):
            raise CheckpointError(next(filter(None, refusals)))
        damage = next(filter(None, damages), "")
        return (None if damage else result), damage

    def _steps(self) -> list[str]:
        """Names of the step directories, intact or not, newest first."""
        names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
        return sorted((name for name in names if name.isdigit()), key=int, reverse=True)

    def _damaged_before(self) -> list[Path]:
        """Directories that an earlier `restore` renamed."""
        return list(self.directory.glob("damaged-*")) if self.directory.is_dir() else []

    def _rename(self, names: Iterable[str]) -> None:
        with processes.fail_together():  # all processes wait until the first one has renamed
            for name in names if jax.process_index() == 0 else ():
                candidates = (
                    self.directory / f"damaged-{name}{suffix}" for suffix in ("", *(f".{n}" for n in range(2, 1000)))
                )
                target = next(path for path in candidates if not path.exists())
                (self.directory / name).rename(target)

    def _keep_unrecorded(self, restored: tuple[TrainState, dict[str, Any]] | None) -> None:
        """Finds checkpoints that may be the best ones, but whose evaluation is missing from the log: they are kept."""
        if not (self._train.keep_best and self._evaluated) or restored is None:
            return
        newest = int(restored[0].step)  # evaluated again, if it has to be
        # The run may have been evaluated less often than now: the records that are left show it.
        every = math.lcm(self._train.eval_every, math.gcd(*self._evaluations) or 1)
        self._unrecorded = frozenset(
            step
            for step in map(int, processes.all_gather(self._steps())[0])
            if step < newest and step % every == 0 and step not in self._evaluations
        )
        if self._unrecorded:
            self.notes.append(
                f"checkpoints {', '.join(map(str, sorted(self._unrecorded)))} are kept, since metrics.jsonl has no evaluation of them: "
                "they may be the best. Remove them if they are not needed"
            )

    def _kept(self, steps: Sequence[int], stored: Mapping[int, Mapping[str, float]] | None = None) -> frozenset[int]:
        """The steps whose checkpoints are kept; `stored`: evaluations that only the checkpoints hold."""
        evaluations = {**(stored or {}), **self._evaluations}
        return kept_steps(steps, self._train, evaluations, self._settled) | (self._unrecorded & set(steps))

    def _remove_surplus(self) -> None:
        """Removes what a killed process was about to remove."""
        steps = [int(name) for name in self._steps()]
        # A run that was evaluated and lost its log: which checkpoints are best is not known.
        if jax.process_index() or (self._train.keep_best and not self._evaluations):
            return
        for step in set(steps) - self._kept(steps):
            # A name that Orbax removes too, should this process be killed here.
            leftover = self.directory / f"{step}.orbax-checkpoint-tmp-0"
            (self.directory / str(step)).rename(leftover)
            shutil.rmtree(leftover, ignore_errors=True)

    def save(self, state: TrainState, interval: dict[str, Any] | None = None) -> None:
        """Starts to save `state`. Returns when the state is copied, before it is written.

        Args:
          state: the state to save. The caller may donate it afterwards.
          interval: the unfinished interval of the log, as JSON values.

        Raises:
          CheckpointError: this checkpoint or the previous one could not be written.
        """
        self.wait()
        step, items = int(state.step), _checkpointables(state)
        custom_metadata = {
            "step": step,
            "janus_jax": janus_jax.__version__,
            "made_by": "train",
            **self._origin,
            "window": interval or {},
            "sums": checksums(items),
            "asset_sums": byte_checksums(self._assets),
        }
        self._convert_errors(
            lambda: self._checkpointer.save_checkpointables_async(
                step, items | {"assets": self._assets}, custom_metadata=custom_metadata
            )
        )

    def wait(self) -> None:
        """Blocks until the save in the background is complete; raises CheckpointError if it failed."""
        self._convert_errors(self._checkpointer.wait)

    def close(self) -> None:
        """Waits, then releases the directory."""
        if self._checkpointer is not None:
            self._convert_errors(self._checkpointer.close)

    def _convert_errors(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except jax.errors.JaxRuntimeError:  # of the devices, or of a lost process
            raise
        except Exception as error:  # of Orbax, its threads and the file system
            raise write_error(self.directory, error) from error


def write_error(directory: Path, error: Exception) -> CheckpointError:
    """The error for checkpoints, or another file of the run, that could not be written."""
    steps = [path.name for path in step_directories(directory)] if directory.is_dir() else []
    complete = f"complete checkpoints: {', '.join(steps)}" if steps else "there is no complete checkpoint yet"
    return CheckpointError(
        f"{directory}: could not be written ({type(error).__name__}: {first_line(error)}); {complete}. Free space or give write "
        "permission; the same command resumes from the newest"
    )


def _read(path: Path, abstract: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is stored in a step directory, by item, and its metadata.

    Raises:
      ValueError: the checkpoint is damaged.
      CheckpointError: it has another structure than `abstract`.
    """
    if not (path / "assets").is_dir():
        raise ValueError("has no assets (config and tokenizer)")
    metadata, items = stored_metadata(path), _checkpointables(abstract)
    custom = metadata.custom_metadata or {}
    # Orbax reports items that it cannot read as absent or empty.
    unread = [
        name for name in custom.get("sums", {}) if name in items and not jax.tree.leaves(metadata.metadata.get(name))
    ]
    if unread:
        raise ValueError(f"{' and '.join(unread)} cannot be read")
    _check_structure(path, metadata.metadata, items)
    assets = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), metadata.metadata["assets"])
    with alone():  # `_read_everywhere` compares what the processes found
        stored = ocp.load_checkpointables(path, items | {"assets": assets})
    check_bytes(stored["assets"], custom)
    return stored, custom


def _verified(stored: dict[str, Any], custom: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
    """State and interval of what `_read` has read.

    Raises:
      ValueError: they are not those that were saved.
    """
    # Absent from older checkpoints. A moving average that this config does not keep was not read.
    sums = {name: value for name, value in custom.get("sums", {}).items() if name in stored}
    read_sums = checksums({name: stored[name] for name in sums})
    wrong = sorted(name for name in sums if sums[name] != read_sums[name])
    if wrong:
        raise ValueError(f"the numbers of {' and '.join(wrong)} differ from those that were saved")
    state = TrainState(stored["progress"]["step"], stored["params"], stored["opt_state"], stored.get("ema"))
    interval = custom.get("window", {})
    if not isinstance(interval, dict) or not interval.keys() <= {"steps", "sums", "skipped"}:
        raise ValueError("its metadata are damaged")
    return state, dict(interval)


def _check_structure(path: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises CheckpointError unless the stored arrays have the expected names and shapes."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        # Paths are compared as text: an optax chain is a tuple in memory, but a list or dict in the stored metadata.
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    for item, tree in expected.items():
        if item not in stored and item != "ema":  # every config needs it
            raise ValueError(f"has no {item}")
        if item not in stored:
            raise CheckpointError(f"{path}: has no {item}, which this config needs; {_STRUCTURE_FIX}")
        old, new = shapes(stored[item]), shapes(tree)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                difference = f"{item}/{name} is {old.get(name, 'absent')}, with this config {new.get(name, 'absent')}"
                raise CheckpointError(f"{path}: does not fit this config ({difference}); {_STRUCTURE_FIX}")


class _Retention:
    """Orbax's form of `Checkpoints._kept`."""

    def __init__(self, kept: Callable[[Sequence[int], Mapping[int, Mapping[str, float]]], frozenset[int]]):
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        # Older runs stored the metrics in the checkpoints.
        stored = {one.step: one.metrics for one in checkpoints if one.metrics}
        kept = self._kept([one.step for one in checkpoints], stored)
        return [one.step in kept for one in checkpoints]


def kept_steps(
    steps: Sequence[int], train: TrainConfig, evaluations: Mapping[int, Mapping[str, float]], settled: int = 0
) -> frozenset[int]:
    """The steps whose checkpoints are kept: the newest, the best, and the multiples of `train.keep_every`.

    Args:
      steps: those that have a checkpoint.
      train: the retention settings.
      evaluations: metrics by step. A step without an evaluation is none of the best.
      settled: and none before this step is.
    """
    ordered = sorted(steps)
    best = best_first([step for step in ordered if step in evaluations and step >= settled], train, evaluations)
    every = [step for step in ordered if train.keep_every and step % train.keep_every == 0]
    return frozenset([*ordered[-train.keep_last :], *best[: train.keep_best], *every])


def best_first(steps: Sequence[int], train: TrainConfig, evaluations: Mapping[int, Mapping[str, float]]) -> list[int]:
    """Evaluated steps in the order of `train.best_metric`; of equal ones the oldest comes first."""
    worst = math.inf if train.best_mode == "min" else -math.inf

    def value(step: int) -> float:
        # A metric that is missing or not finite must not change the order of the others.
        metric = evaluations[step].get(train.best_metric, worst)
        return metric if math.isfinite(metric) else worst

    return sorted(sorted(steps), key=value, reverse=train.best_mode == "max")  # a reversed sort is stable too


def _checkpointables(state: TrainState) -> dict[str, Any]:
    items = {"progress": {"step": state.step}, "params": state.params, "opt_state": state.opt_state}
    return items if state.ema is None else items | {"ema": state.ema}
