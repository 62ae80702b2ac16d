"""The training loop: the only stateful code of the room.

Legend: A micro-batches of a step, B sentences.
"""

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax import parallel, text
from janus_jax.checkpoint import Checkpoints
from janus_jax.config import Config, ConfigError, objective_terms, scheduled
from janus_jax.data import Prepared, TrainBatches, eval_batches, train_batches
from janus_jax.decode import Generator, trained_modes
from janus_jax.evaluate import score
from janus_jax.model import Janus
from janus_jax.objective import active_terms
from janus_jax.train.changes import begun, keep_config
from janus_jax.train.initial import initial_params
from janus_jax.train.log import Clock, RunLog, Window, last_evaluation, plot_curves
from janus_jax.train.step import init_state, jit_eval_step, jit_train_step, state_from_params
from janus_jax.types import TrainState


class NonFiniteLossError(RuntimeError):
    """Training met a loss or gradient that is not finite more often than allowed."""


def train(config: Config, workdir: str | Path, *, allow_changes: bool = False) -> dict[str, float]:
    """Trains, or goes on training, the run in `workdir`.

    Args:
      config: the experiment; `model.vocab_size` 0 is taken from the tokenizer.
      workdir: gets checkpoints/, config.json, metrics.jsonl, tensorboard/ and curves.png. If it holds a checkpoint, the
        run continues from the newest, bitwise as if it had never stopped.
      allow_changes: continue although settings that change what is computed differ from those that the run began with.

    Returns:
      The metrics of the last evaluation (empty if there was none).

    Raises:
      ConfigError: the config contradicts the prepared data, the devices, `init_from`, or the run in `workdir`.
      NonFiniteLossError: see train.max_bad_steps.
    """
    return _Run(config, Path(workdir), allow_changes).go()


def resolve_with_data(config: Config, prepared: Prepared) -> Config:
    """The config with the vocabulary size of the prepared data filled in.

    Raises:
      ConfigError: another size was asked for.
    """
    size = text.load(prepared.tokenizer_bytes).vocab_size
    if config.model.vocab_size not in (0, size):
        raise ConfigError(
            f"config.model.vocab_size: {config.model.vocab_size} is not the tokenizer's {size}; set it to 0 or {size}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


class _Run:
    def __init__(self, config: Config, workdir: Path, allow_changes: bool):
        self.prepared = Prepared.open(config.data.prepared, config)
        self.config = resolve_with_data(config, self.prepared)
        self.workdir = workdir
        self.tokenizer = text.load(self.prepared.tokenizer_bytes)
        self.net = Janus(self.config.model, self.tokenizer.specials)
        self.mesh = parallel.make_mesh(config.parallel)
        self.process, self.processes = jax.process_index(), jax.process_count()
        parallel.check_rows(self.mesh, config.data.batch_multiple)
        TrainBatches(self.prepared, self.config, self.process, self.processes)  # raises what is wrong with the plan
        initial, notes = None, []
        if self.config.init_from and not begun(workdir):
            initial, notes = initial_params(self.net, self.config, self.prepared.tokenizer_bytes)
        changed = keep_config(self.config, workdir, allow_changes, write=self.process == 0)
        with jax.set_mesh(self.mesh):
            self.abstract = self._abstract_state()
            shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
            # One for every set of loss terms that has a weight at some step.
            self.step_fn = functools.cache(
                lambda terms: jit_train_step(self.net, self.config, self.mesh, shardings, terms)
            )
            self.eval_fn = jit_eval_step(self.net, self.config, self.mesh)
            self.checkpoints = Checkpoints(workdir / "checkpoints", self.config, self.prepared.tokenizer_bytes)
            self.state = self._first_state(shardings, initial)
        self.window = Window(**self.checkpoints.window)
        self.bad_steps = 0
        self.stop = False
        self.last_evaluation: dict[str, float] = {}
        self.log = RunLog(workdir, int(self.state.step), config.train.steps, active=self.process == 0)
        if changed:
            self.log.message(f"continues with other settings: {'; '.join(changed)}")
        if initial is not None:
            self.log.message(f"starts from {self.config.init_from}{''.join(f'; {note}' for note in notes)}")

    def go(self) -> dict[str, float]:
        try:
            with _on_sigterm(self._ask_to_stop), jax.set_mesh(self.mesh):
                self._steps()
        finally:
            # Whatever happened, what is being written gets complete.
            self.checkpoints.close()
            self.log.close()
        self._plot()
        return self.last_evaluation or last_evaluation(self.workdir)

    def _plot(self) -> None:
        if self.process == 0:
            plot_curves(self.workdir)

    def _steps(self) -> None:
        settings, start, objective = self.config.train, int(self.state.step), scheduled(self.config)
        batches = train_batches(self.prepared, self.config, start, settings.steps, self.process, self.processes)
        pending: tuple[int, Any, np.ndarray] | None = None
        clock = Clock()
        for step in range(start + 1, settings.steps + 1):
            with clock.waiting():
                batch = next(batches)
            step_fn = self.step_fn(active_terms(objective, step - 1))
            self.state, metrics = step_fn(self.state, parallel.put_batch(self.mesh, batch, leading=1))
            # Metrics are read a step late, so that the device never waits for the host.
            self._read(pending, clock)
            pending = (step, metrics, batch.example_id)
            # Read once a step: a request that comes during the pause below is met after the next step.
            stopping = self.stop
            last = step == settings.steps or stopping
            evaluates = step % settings.eval_every == 0 or step == settings.steps
            if evaluates or last or step % settings.checkpoint_every == 0:
                self._read(pending, clock)
                pending = None
                self._pause(step, evaluates, last)
                clock = Clock()
            if stopping:
                self.log.message(f"stopped on request after step {step}; the same command continues from here")
                return

    def _pause(self, step: int, evaluates: bool, last: bool) -> None:
        """Evaluation and checkpoint, in this order, since the metrics go in with the checkpoint."""
        metrics = self._evaluate(step) if evaluates else {}
        if last or step % self.config.train.checkpoint_every == 0:
            if self.config.train.keep_best and metrics and self.config.train.best_metric not in metrics:
                raise ConfigError(
                    f"config.train.best_metric: {self.config.train.best_metric!r} is not measured; choose from {sorted(metrics)}"
                )
            self.checkpoints.save(self.state, metrics or None, self.window.stored())
        if evaluates:
            self._plot()

    def _read(self, pending: tuple[int, Any, np.ndarray] | None, clock: Clock) -> None:
        """Takes the metrics of a step that is done to the host: the fault check, and a record if one is due."""
        if pending is None:
            return
        step, metrics, example_ids = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.log.advance()
        clock.count(values.pop("target_tokens"))
        if values.pop("finite"):
            self.window.add(values)
        else:
            self._bad_step(step, values, example_ids)
        if step % self.config.train.log_every == 0 or step == self.config.train.steps:
            own = {name: value for name, value in values.items() if name.startswith(("learning_rate", "weight/"))}
            self.log.record(step, self.window.means() | own | clock.figures())

    def _bad_step(self, step: int, values: dict[str, float], example_ids: np.ndarray) -> None:
        self.bad_steps += 1
        ids = np.sort(example_ids[example_ids >= 0]).tolist()
        text_ids = ", ".join(map(str, ids[:20])) + (f", ... ({len(ids)} in all)" if len(ids) > 20 else "")
        message = (
            f"step {step}: loss {values['loss/total']}, gradient norm {values['grad_norm']}: not finite, so the step "
            f"changed nothing. Training examples of the step: {text_ids}."
        )
        if self.bad_steps <= self.config.train.max_bad_steps:
            self.log.message(f"{message} Skipped ({self.bad_steps} of {self.config.train.max_bad_steps} allowed).")
            return
        raise NonFiniteLossError(
            f"{message} Try a lower optimizer.learning_rate or a longer warm-up, optimizer.clip_norm=1.0, "
            "model.dtype=float32 (with --allow_changes), or look at these examples; train.max_bad_steps tolerates some. "
            + (
                f"The newest checkpoint, step {self.checkpoints.latest}, is intact, and the run continues from it."
                if self.checkpoints.latest is not None
                else "No checkpoint had been saved yet."
            )
        )

    def _evaluate(self, step: int) -> dict[str, float]:
        """Loss over the validation split, and scores of a decoded sample of it; {} without the split."""
        if "valid" not in self.prepared.splits:
            return {}
        params = self.state.params if self.state.ema is None else self.state.ema
        sums: dict[str, float] = {}
        for batch in eval_batches(self.prepared, self.config, "valid", self.process, self.processes):
            values = self.eval_fn(params, parallel.put_batch(self.mesh, batch))
            for name, value in jax.device_get(values).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        metrics = _means(sums, self.config)
        metrics |= self._decode_sample(params)
        self.last_evaluation = metrics
        self.log.record(step, metrics)
        return metrics

    def _decode_sample(self, params: Any) -> dict[str, float]:
        """BLEU of the first validation sentences, decoded by every half of the model that the objective trains."""
        count = min(self.config.train.eval_sentences, len(self.prepared.split("valid")))
        if not count or self.config.data.source == "text":  # blocks of text have no references
            return {}
        generator = Generator(
            self.net,
            params,
            self.tokenizer,
            self.config.decode,
            max_source_length=self.config.data.max_source_length,
            max_target_length=self.config.data.max_target_length,
            mesh=self.mesh,
        )
        sources, references = zip(*self.prepared.text("valid")[:count], strict=True)
        modes = {"ar": {"mode": "ar", "beam": 1}, "nar": {"mode": "nar"}, "ctc": {"mode": "ctc", "beam": 1}}
        found = {}
        for name, settings in modes.items():
            if name in trained_modes(self.config.objective):
                outputs = generator.generate(sources, **settings)
                found[f"valid/bleu_{name}"] = score([output.text for output in outputs], references)["bleu"]
        return found

    def _abstract_state(self) -> TrainState:
        shapes = jax.eval_shape(lambda: init_state(self.net, self.config))
        shardings = parallel.state_shardings(self.mesh, shapes)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    def _first_state(self, shardings: Any, initial: Any) -> TrainState:
        if self.checkpoints.latest is not None:
            return self.checkpoints.restore(self.abstract)
        if initial is not None:
            return jax.jit(lambda p: state_from_params(self.config, p), out_shardings=shardings)(initial)
        return jax.jit(lambda: init_state(self.net, self.config), out_shardings=shardings)()

    def _ask_to_stop(self) -> None:
        self.stop = True


def _means(sums: dict[str, float], config: Config) -> dict[str, float]:
    """valid/... metrics from the sums of the evaluation step: each term as the loss normalises it, nll per token, and the
    total as the final weights add it up."""
    kind = {"ar": "ar", "length": "length", "ctc": "ctc", "kl_ar_ctc": "ctc", "unfit": "length"}
    metrics = {}
    for name, value in sums.items():
        group, _, term = name.removeprefix("sum/").rpartition("/")
        if name.startswith("sum/"):
            rows = "rows/" if group in ("nll", "ctc") else ""
            metrics[f"valid/{group}/{term}"] = value / sums[f"weight/{rows}{kind.get(term, 'masked')}"]
    total = 0.0
    for term, weight in objective_terms(config.objective).items():
        final = weight[-1][1] if isinstance(weight, tuple) else weight
        total += final * metrics[f"valid/loss/{term}"]
    return {"valid/loss": total, **metrics}


@contextlib.contextmanager
def _on_sigterm(ask: Any) -> Iterator[None]:
    """SIGTERM asks the loop to save and stop after the step in hand; outside the main thread nothing is installed."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: ask())
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
