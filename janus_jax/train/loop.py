"""The training loop: the only stateful code of this package.

Legend: A micro-batches of a step, B examples of a micro-batch.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax import checkpoint, parallel, processes, text
from janus_jax.checkpoint import Checkpoints, best_first, write_error
from janus_jax.config import Config, ConfigError, last_change, only_terms, scheduled
from janus_jax.data import Prepared, TrainBatches, eval_batches, train_batches
from janus_jax.metrics import evaluations
from janus_jax.model import Janus
from janus_jax.model.cost import step_flops
from janus_jax.objective.joint import active_terms, check_two_targets
from janus_jax.train.evaluation import Evaluation
from janus_jax.train.initial import initial_params
from janus_jax.train.log import IntervalMeans, RunLog, plot_curves
from janus_jax.train.meter import Meter, SpikeDetector, peak_flops
from janus_jax.train.profile import Profiler
from janus_jax.train.step import abstract_state, jit_init_state, jit_train_step, state_from_params
from janus_jax.train.workdir import (
    changed_settings,
    check_workdir_is_shared,
    depends_on_steps,
    has_checkpoint,
    save_settings,
    workdir_lock,
)
from janus_jax.types import TrainState


class NonFiniteLossError(RuntimeError):
    """More steps than allowed had a loss or gradient that is not finite."""


def train(config: Config, workdir: str | Path, *, allow_changes: bool = False) -> dict[str, float]:
    """Starts or resumes the run in `workdir` and trains it to its end.

    Args:
      config: the experiment. If `model.vocab_size` is 0, the tokenizer's size is used.
      workdir: gets checkpoints/, config.json, metrics.jsonl, tensorboard/ and curves.png. If it holds a checkpoint, the
        run resumes from the newest, bitwise as if it had never stopped.
      allow_changes: resume even if settings that affect the results differ from those that the run started with.

    Returns:
      The metrics of the last evaluation (empty if there was none).

    Raises:
      ConfigError: the config contradicts the prepared data, the devices, `init_from`, or the run in `workdir`.
      CheckpointError: a checkpoint cannot be written, or none can be read.
      NonFiniteLossError: more than train.max_bad_steps steps had a loss or gradient that is not finite.
      LostProcessError: another process of the run died or cannot be reached.
    """
    return train_or_stop(config, workdir, allow_changes=allow_changes)[0]


def train_or_stop(
    config: Config, workdir: str | Path, *, allow_changes: bool = False, profile: tuple[int, int] | None = None
) -> tuple[dict[str, float], bool]:
    """The same as `train`; also returns whether SIGTERM or SIGHUP stopped the run before its end.

    Args:
      config, workdir, allow_changes: see `train`.
      profile: first and last step to trace, into workdir/profile.
    """
    if "://" in str(workdir):
        raise ConfigError(f"--workdir={workdir}: an address is no directory; mount the bucket and name its directory")
    workdir = Path(os.path.expanduser(workdir))
    with contextlib.ExitStack() as lock, processes.stop_on_signal() as request:
        try:
            return _TrainingRun(config, workdir, allow_changes, profile, lock, request).run()
        except OSError as error:  # from writing the log, for example on a full disk
            raise write_error(workdir / "checkpoints", error) from error


def resolve_with_data(config: Config, prepared: Prepared) -> Config:
    """The config of a run with the vocabulary size of the prepared data filled in.

    Raises:
      ConfigError: the config names another size, or trains some parameters only and does not say where the others are from.
    """
    if config.train.only and not config.init_from:  # settings of an import may be so: it has all its parameters
        raise ConfigError(
            "config.train.only: the parameters that are not trained would stay random; name a checkpoint, init_from=DIR, or set "
            'train.only=""'
        )
    size = text.load(prepared.tokenizer_bytes).vocab_size
    if config.model.vocab_size not in (0, size):
        raise ConfigError(
            f"config.model.vocab_size: {config.model.vocab_size} is not the tokenizer's {size}; set it to 0 or {size}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


class LostProcessError(RuntimeError):
    """Another process of the run, or one of its devices, died or cannot be reached."""


@dataclasses.dataclass(frozen=True)
class _StepInFlight:
    """A step that the device runs; the host has not read its metrics yet."""

    step: int
    terms: tuple[str, ...]
    metrics: Any
    example_ids: np.ndarray
    flops: float
    stop: Any  # whether any process was asked to stop; see processes.any_process


class _TrainingRun:
    def __init__(
        self,
        config: Config,
        workdir: Path,
        allow_changes: bool,
        profile: tuple[int, int] | None,
        lock: contextlib.ExitStack,
        request: processes.StopRequest,
    ):
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.workdir = workdir
        with processes.fail_together():
            self._open_data_and_devices(config)
        # After that, since all processes read a checkpoint together.
        with processes.fail_together():
            initial, notes = None, []
            if self.config.init_from and not has_checkpoint(workdir):
                initial, notes = initial_params(self.net, self.config, self.prepared.tokenizer_bytes)
            lock.enter_context(workdir_lock(workdir, write=self.process == 0))
        with processes.fail_together():
            check_workdir_is_shared(workdir)
            changed = changed_settings(self.config, self.prepared.contents, workdir, allow_changes)
        self.meter = Meter(sum(map(peak_flops, jax.local_devices())) * self.processes)
        self.profiler = Profiler(workdir / "profile", profile)
        with jax.set_mesh(self.mesh):
            abstract = abstract_state(self.net, self.config, self.mesh)
            shardings = jax.tree.map(lambda x: x.sharding, abstract)
            # One compiled step function for each set of loss terms whose weights are not zero at a step.
            self.step_fn = functools.cache(
                lambda terms: jit_train_step(self.net, self.config, self.mesh, shardings, terms)
            )
            self.evaluation = Evaluation(self.net, self.config, self.prepared, self.tokenizer, self.mesh)
            self.evaluation.check(abstract.params)
            with processes.fail_together():
                recorded = evaluations(workdir) if self.process == 0 else {}
            # All processes use the list of the first one, as the checkpoints do.
            self.evaluations = dict(map(tuple, processes.all_gather(list(recorded.items()))[0]))
            self.checkpoints = Checkpoints(
                workdir / "checkpoints",
                self.config,
                self.prepared.tokenizer_bytes,
                self.evaluations,
                data=self.prepared.contents,
                evaluated="valid" in self.prepared.splits,
            )
            self.state, interval = self._first_state(abstract, initial)
        for step in [step for step in self.evaluations if step > int(self.state.step)]:
            del self.evaluations[step]  # of a checkpoint that is damaged or gone
        self.interval = IntervalMeans(**interval)
        self.spikes = SpikeDetector(config.train.spike)
        self.any_process = processes.any_process(self.mesh)
        self.request = request  # whether this process received SIGTERM or SIGHUP
        self.stopping = False  # True once all processes know that one of them did
        self.stopped = False  # the run stopped before its last step
        self.log = RunLog(workdir, int(self.state.step), config.train.steps, active=self.process == 0)
        # Not before the records of later steps are gone: `changed_settings` compares them with these settings.
        if self.process == 0 and int(self.state.step) < config.train.steps:
            save_settings(self.config, self.prepared.contents, workdir)
        for note in self.checkpoints.notes:
            self.log.message(note)
        if changed:
            self.log.message(f"resumes with other settings: {'; '.join(changed)}")
        if initial is not None:
            self.log.message("; ".join([f"starts from {self.config.init_from}", *notes]))

    def _open_data_and_devices(self, config: Config) -> None:
        """Opens the prepared data and builds model and mesh; raises what is wrong with them before anything is written."""
        self.prepared = Prepared.open(config.data.prepared, config)
        self.config = resolve_with_data(config, self.prepared)
        if self.prepared.two_targets and not only_terms(self.config):
            check_two_targets(self.config.objective)
        self.tokenizer = text.load(self.prepared.tokenizer_bytes)
        self.net = Janus(self.config.model, self.tokenizer.specials)
        self.mesh = parallel.make_mesh(config.parallel)
        parallel.check_rows(self.mesh, config.data.batch_multiple)
        self.share = parallel.batch_share(self.mesh)
        TrainBatches(self.prepared, self.config, *self.share)  # raises errors of the batch plan
        if "valid" in self.prepared.splits:
            eval_batches(self.prepared, self.config, "valid", *self.share)  # the same
        self.prepared.split("train").load()  # raises errors of the files

    def run(self) -> tuple[dict[str, float], bool]:
        """Trains; returns the metrics of the last evaluation and whether the run was stopped before its end."""
        try:
            with jax.set_mesh(self.mesh):
                self._steps()
                self.checkpoints.wait()
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            # These two errors come from this process itself, not from the loss of another.
            if self.processes == 1 or "RESOURCE_EXHAUSTED" in message or "INVALID_ARGUMENT" in message:
                raise
            raise LostProcessError(
                f"another process of this run is lost ({message.splitlines()[0][:200]}). Newest checkpoint: step "
                f"{self.checkpoints.latest}. Start all processes again: the same command resumes from it"
            ) from error
        finally:
            if not isinstance(sys.exception(), LostProcessError):
                self.checkpoints.close()  # completes what is being written
            self.profiler.close()
            self.meter.close()
            self.log.close()
            # A notebook keeps the traceback of an interrupted run, and what its frames hold: the next run needs the memory.
            self.state = None
            if isinstance(sys.exception(), KeyboardInterrupt):
                traceback.clear_frames(sys.exception().__traceback__)
        self._plot()
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}, self.stopped

    def _plot(self) -> None:
        if self.process == 0:
            plot_curves(self.workdir)

    def _steps(self) -> None:
        settings, start, objective = self.config.train, int(self.state.step), scheduled(self.config)
        batches = train_batches(self.prepared, self.config, start, settings.steps, *self.share)
        pending: _StepInFlight | None = None
        settled = last_change(objective)
        if start >= settings.steps:
            longer = "name a new --workdir" if depends_on_steps(self.config) else "raise train.steps"
            self.log.message(
                f"{self.workdir} has all its {start} steps, so there is nothing to train; for a longer run {longer}"
            )
            self._say_kept_decoding()
        if missed := self.profiler.missed(start, settings.steps):
            self.log.message(missed)
        if start and self._evaluates(start) and start not in self.evaluations:
            self._evaluate(start)  # the run ended after it had saved this step
        if self._ends_early(start):
            return
        self.meter.restart()
        for step in range(start + 1, settings.steps + 1):
            with self.meter.waiting():
                batch = next(batches)
            terms = only_terms(self.config) or active_terms(objective, step - 1)
            self.log.announce(step, terms, settled)
            self.profiler.before(step)
            self.state, metrics = self.step_fn(terms)(self.state, parallel.put_batch(self.mesh, batch, leading=1))
            stop = self.any_process(self.request.received)
            current = _StepInFlight(step, terms, metrics, batch.example_id, self._flops(batch, terms), stop)
            # Metrics are read a step late, so that the device never waits for the host.
            self._read(pending)
            pending = current
            last = step == settings.steps or self.stopping
            pauses = self._evaluates(step) or last or step % settings.checkpoint_every == 0
            if pauses or self.profiler.after(step):
                self._read(pending)
                pending = None
                last = last or self.stopping
                pauses = pauses or last
            if self.profiler.after(step):
                self.profiler.close()
            if pauses:
                self._pause(step, last)
            if last and step < settings.steps:
                self.log.message(f"stopped on request after step {step}; the same command resumes the run")
                self.stopped = True
                return
            if pauses and self._ends_early(step):
                return

    def _say_kept_decoding(self) -> None:
        newest = self.workdir / "checkpoints" / str(self.checkpoints.latest)
        if checkpoint.config(newest).decode != self.config.decode:
            self.log.message(
                "the checkpoints keep the decoding settings that they were saved with; give others to `python -m janus_jax.decode`, or "
                "store them with `python -m janus_jax.evaluate --save_best`"
            )

    def _ends_early(self, step: int) -> bool:
        """Whether the last `train.patience` evaluations are no better than one before them; the log then says so.

        Those from the step on count at which all terms have their last weight (`objective.ar_first`, schedules).
        """
        settings, settled = self.config.train, last_change(scheduled(self.config))
        evaluated = sorted(number for number in self.evaluations if number >= settled)
        if not settings.patience or step == settings.steps or step not in evaluated:
            return False
        best = best_first(evaluated, settings, self.evaluations)[0]
        since = len(evaluated) - 1 - evaluated.index(best)
        if since < settings.patience:
            return False
        self.log.message(
            f"ended at step {step}: {settings.best_metric} is not better than at step {best}, {since} evaluations before; "
            + self._best_checkpoint(evaluated)
        )
        return True

    def _best_checkpoint(self, evaluated: Sequence[int]) -> str:
        """Names the best checkpoint. That of the best step may be gone, if the run had other settings before."""
        best = best_first(evaluated, self.config.train, self.evaluations)
        saved = [step for step in best if (self.workdir / "checkpoints" / str(step)).is_dir()]
        if not saved:
            return "no checkpoint of an evaluated step exists"
        gone = "" if saved[0] == best[0] else f"there is no checkpoint of step {best[0]} any more, and "
        return f"{gone}the best checkpoint is {self.workdir / 'checkpoints' / str(saved[0])}"

    def _flops(self, batch: Any, terms: tuple[str, ...]) -> float:
        micro, rows, source = batch.source.shape
        sizes = (micro * rows * self.share[1], source, batch.target.shape[-1], batch.masked.shape[-1])
        return step_flops(self.config, *sizes, terms)

    def _evaluates(self, step: int) -> bool:
        return step % self.config.train.eval_every == 0 or step == self.config.train.steps

    def _pause(self, step: int, last: bool) -> None:
        """Saves a checkpoint, if one is due, then evaluates: after it, an evaluation that fails or is killed costs no steps."""
        self.meter.pause()
        if last or step % self.config.train.checkpoint_every == 0:
            self.log.sync()
            self.checkpoints.save(self.state, self.interval.state())
        # A run that was asked to stop has little time; it evaluates when it resumes.
        if self._evaluates(step) and not (self.stopping and step < self.config.train.steps):
            self.checkpoints.wait()
            self._evaluate(step)
            if not last:  # `run` plots at the end
                self._plot()
        self.meter.restart()

    def _read(self, pending: _StepInFlight | None) -> None:
        """Reads the metrics of a step once it is done: checks for faults, and writes a record if one is due."""
        if pending is None:
            return
        step = pending.step
        values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        self.stopping = self.stopping or bool(pending.stop)
        self.meter.count(values.pop("target_tokens"), pending.flops)
        if values.pop("finite"):
            self.interval.add(values)
            if excess := self.spikes.check(values["loss/total"], pending.terms):
                self.log.message(
                    f"step {step}: loss {values['loss/total']:.4g} is {excess:.1f} standard deviations "
                    "above the previous steps. "
                    f"Training examples of the step: {_format_ids(pending.example_ids)}. The run goes on; "
                    "config.train.spike=0 turns these messages off"
                )
        else:
            self._bad_step(pending, values)
        figures = {}
        if step % self.config.train.log_every == 0 or step == self.config.train.steps:
            step_values = {
                name: value for name, value in values.items() if name.startswith(("learning_rate", "weight/"))
            }
            step_values |= {"skipped_steps": float(self.interval.skipped)} if self.interval.skipped else {}
            figures = self.meter.figures()
            self.log.record(step, self.interval.means() | step_values | figures)
        self.log.advance(figures)

    def _bad_step(self, pending: _StepInFlight, values: dict[str, float]) -> None:
        self.interval.skipped += 1
        message = (
            f"step {pending.step}: loss {values['loss/total']}, gradient norm {values['grad_norm']}: not finite, so the step "
            f"changed nothing. Training examples of the step: {_format_ids(pending.example_ids)}."
        )
        if self.interval.skipped <= self.config.train.max_bad_steps:
            self.log.message(
                f"{message} Skipped ({self.interval.skipped} of {self.config.train.max_bad_steps} allowed)."
            )
            return
        self.checkpoints.wait()  # until the checkpoint that is being written is complete: the message names it
        raise NonFiniteLossError(
            f"{message} Try a lower optimizer.learning_rate or a longer warm-up, optimizer.clip_norm=1.0, "
            "model.dtype=float32 (with --allow_changes), or look at these examples; a higher "
            "train.max_bad_steps tolerates more such steps. "
            + (
                f"The newest checkpoint, step {self.checkpoints.latest}, is intact, and the run resumes from it."
                if self.checkpoints.latest is not None
                else "No checkpoint had been saved yet."
            )
        )

    def _evaluate(self, step: int) -> None:
        params = self.state.params if self.state.ema is None else self.state.ema
        try:
            metrics = self.evaluation.measure(params)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not processes.out_of_memory(error):
                raise
            # The loss on a batch takes less than a step, which has fitted: decoding may take more.
            raise ConfigError(
                f"the evaluation of step {step} does not fit into memory; lower config.decode.batch_tokens (now "
                f"{self.config.decode.batch_tokens}), or set config.train.eval_sentences to 0. The same command resumes"
            ) from error
        if metrics:
            self.log.record(step, metrics)
            self.evaluations[step] = metrics

    def _first_state(self, abstract: TrainState, initial: Any) -> tuple[TrainState, dict[str, Any]]:
        """The state to start from, and the unfinished interval of the log.

        Args:
          abstract: the state as ShapeDtypeStructs with shardings.
          initial: parameters of another checkpoint; None: random ones.
        """
        if restored := self.checkpoints.restore(abstract):
            return restored
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        if initial is not None:
            return jax.jit(lambda p: state_from_params(self.config, p), out_shardings=shardings)(initial), {}
        return jit_init_state(self.net, self.config, shardings)(), {}


def _format_ids(example_ids: np.ndarray) -> str:
    """The ids of a step's examples on all processes; at most 20 are named."""
    ids = sorted(set(itertools.chain(*processes.all_gather(example_ids[example_ids >= 0].tolist()))))
    return ", ".join(map(str, ids[:20])) + (f", ... ({len(ids)} in all)" if len(ids) > 20 else "")
