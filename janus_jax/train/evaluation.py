"""Evaluation during training: the loss over the validation split, and scores of decoded validation sentences."""

import difflib
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax import parallel, processes
from janus_jax.config import Config, ConfigError, ParallelConfig, TrainConfig, objective_terms
from janus_jax.data import Prepared, eval_batches
from janus_jax.decode import MODES, Generator, trained_modes
from janus_jax.decode.keywords import for_scores, with_keywords
from janus_jax.decode.types import DecodePlan
from janus_jax.evaluate import score
from janus_jax.model import Janus
from janus_jax.objective.terms import divisor_of
from janus_jax.text import Tokenizer
from janus_jax.train.step import jit_eval_step, make_eval_step
from janus_jax.types import Batch, Params


class Evaluation:
    """Evaluates the parameters of a run, on all of its processes.

    Args:
      net: the model.
      config: of the run.
      prepared: the data of the run.
      tokenizer: of the data.
      mesh: the devices of the run.
    """

    def __init__(self, net: Janus, config: Config, prepared: Prepared, tokenizer: Tokenizer, mesh: jax.sharding.Mesh):
        self._net, self._config, self._prepared, self._tokenizer, self._mesh = net, config, prepared, tokenizer, mesh
        self._step = jit_eval_step(net, config, mesh)
        self._process, self._processes = jax.process_index(), jax.process_count()
        self._share = parallel.batch_share(mesh)

    def check(self, params: Params) -> None:
        """Checks, before the first step, that evaluations will work: see `_check_modes` and `_check_best_metric`."""
        self._check_modes()
        self._check_best_metric(params)

    def _check_modes(self) -> None:
        """Raises ConfigError if a mode cannot decode the validation sentences with the settings of the run."""
        config = self._config
        trained = trained_modes(config)
        for name in () if config.decode.allow_untrained else trained:
            if getattr(getattr(config.decode, name), "rerank", "none") == "ar" and "ar" not in trained:
                raise ConfigError(
                    f"config.decode.{name}.rerank: ar, but the objective trains only {' and '.join(trained)}; set it to none, "
                    "or set config.decode.allow_untrained"
                )
        for name in self._scored_modes() if "valid" in self._prepared.splits else ():
            decode = with_keywords(config.decode, _settings_of(name))
            longest = min(config.data.max_target_length, self._net.config.max_positions)
            plan = DecodePlan(self._net, decode, longest, trained, config.data.max_source_length)
            try:
                if check := MODES[name].check:
                    check(plan)
            except ValueError as error:
                raise ConfigError(
                    f"config.train.eval_sentences: mode {name} cannot decode validation sentences ({error}); set it to 0, or "
                    f"change config.decode.{name}"
                ) from error

    def _check_best_metric(self, params: Params) -> None:
        """Checks that `train.best_metric` is one of the metrics of `measure`.

        Args:
          params: of the model, as ShapeDtypeStructs. The evaluation step is traced with them, not run.

        Raises:
          ConfigError: it is not; the message names the nearest one, or what keeps it from being measured. Or
            `train.patience` waits for evaluations of a split that is absent.
        """
        train = self._config.train
        if train.patience and "valid" not in self._prepared.splits:
            raise ConfigError(
                f"config.train.patience: {self._prepared.directory} has no validation split to evaluate; set data.valid and "
                "prepare again, or set train.patience=0"
            )
        # The default exists in every evaluation, and without one it changes nothing.
        if not train.keep_best or train.best_metric == TrainConfig().best_metric:
            return
        wrong = f"config.train.best_metric: {train.best_metric!r} is not measured"
        if "valid" not in self._prepared.splits:
            raise ConfigError(
                f"{wrong}, because {self._prepared.directory} has no validation split; set data.valid and prepare again, "
                "or set train.keep_best=0"
            )
        measured = self._names(params)
        if train.best_metric in measured:
            return
        near = difflib.get_close_matches(train.best_metric, measured, n=1)
        if train.best_metric.startswith("valid/bleu") and not any(name.startswith("valid/bleu") for name in measured):
            text = "blocks of plain text have no references"
            hint = text if self._config.data.source == "text" else "set train.eval_sentences, now 0, above 0"
        else:
            hint = f"did you mean {near[0]!r}?" if near else "name another"
        raise ConfigError(f"{wrong} by this configuration; {hint} Measured are {', '.join(sorted(measured))}")

    def _names(self, params: Params) -> list[str]:
        """The names of the metrics of `measure`."""
        # The names do not depend on the sizes of a batch.
        rows, tokens = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, 8), jnp.int32)
        step = make_eval_step(self._net, self._config)
        sums = jax.eval_shape(step, params, Batch(tokens, tokens, tokens, rows, rows))
        ones = dict.fromkeys(sums, 1.0)
        return [*_means(ones, self._config), *(f"valid/bleu_{name}" for name in self._scored_modes())]

    def _scored_modes(self) -> list[str]:
        """The modes that decode validation sentences."""
        config = self._config
        if not config.train.eval_sentences or config.data.source == "text":  # blocks of text have no references
            return []
        return [name for name in trained_modes(config) if MODES[name].validation is not None]

    def measure(self, params: Params) -> dict[str, float]:
        """The metrics, the same on all processes; {} without a validation split."""
        if "valid" not in self._prepared.splits:
            return {}
        sums: dict[str, float] = {}
        for batch in eval_batches(self._prepared, self._config, "valid", *self._share):
            values = self._step(params, parallel.put_batch(self._mesh, batch))
            for name, value in jax.device_get(values).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return _means(sums, self._config) | self._scores(params)

    def _scores(self, params: Params) -> dict[str, float]:
        """BLEU of the first validation sentences, decoded in each mode that the objective trains."""
        config = self._config
        modes = self._scored_modes()
        if not modes:
            return {}
        count = min(config.train.eval_sentences, len(self._prepared.split("valid")))
        mesh = self._mesh
        if self._processes > 1:
            # A search ends when its sentences are done, which differs between processes: each decodes its share by itself.
            mesh = parallel.make_mesh(ParallelConfig(), jax.local_devices())
            params = processes.local_copy(self._mesh, params)
        generator = Generator(
            self._net,
            params,
            self._tokenizer,
            config.decode,
            max_source_length=config.data.max_source_length,
            max_target_length=config.data.max_target_length,
            trained=trained_modes(config),
            mesh=mesh,
        )
        sources, references = zip(*self._prepared.text("valid")[:count], strict=True)
        scores = {}
        for name in modes:
            outputs = generator.generate(sources[self._process :: self._processes], **_settings_of(name))
            texts = [""] * count
            for process, part in enumerate(processes.all_gather([output.text for output in outputs])):
                texts[process :: self._processes] = part
            scores[f"valid/bleu_{name}"] = score(texts, references)["bleu"]
        return scores


def _settings_of(mode: str) -> dict[str, Any]:
    return for_scores({"mode": mode, **(MODES[mode].validation or {})})


def _means(sums: dict[str, float], config: Config) -> dict[str, float]:
    """The valid/... metrics from the sums of the evaluation step: each term divided as in the loss, nll per token, and the
    total with the weights of the last step."""
    metrics = {}
    for name, value in sums.items():
        if name.startswith("sum/"):
            metric = name.removeprefix("sum/")
            metrics[f"valid/{metric}"] = value / max(sums[f"weight/{divisor_of(metric)}"], 1.0)
    total = 0.0
    for term, weight in objective_terms(config.objective).items():
        final = weight[-1][1] if isinstance(weight, tuple) else weight
        total += final * metrics[f"valid/loss/{term}"]
    return {"valid/loss": total, **metrics}
