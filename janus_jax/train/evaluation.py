"""Evaluation during training: the loss over the validation split, and scores of decoded validation sentences."""

import jax

from janus_jax import parallel, processes
from janus_jax.config import Config, ParallelConfig, objective_terms
from janus_jax.data import Prepared, eval_batches
from janus_jax.decode import MODES, Generator, trained_modes
from janus_jax.evaluate import score
from janus_jax.model import Janus
from janus_jax.objective.terms import divisor_of
from janus_jax.text import Tokenizer
from janus_jax.train.step import jit_eval_step
from janus_jax.types import Params


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
        count = min(config.train.eval_sentences, len(self._prepared.split("valid")))
        if not count or config.data.source == "text":  # blocks of text have no references
            return {}
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
            mesh=mesh,
        )
        sources, references = zip(*self._prepared.text("valid")[:count], strict=True)
        scores = {}
        for name in trained_modes(config.objective):
            if (settings := MODES[name].validation) is not None:
                outputs = generator.generate(sources[self._process :: self._processes], mode=name, **settings)
                texts = [""] * count
                for process, part in enumerate(processes.all_gather([output.text for output in outputs])):
                    texts[process :: self._processes] = part
                scores[f"valid/bleu_{name}"] = score(texts, references)["bleu"]
        return scores


def _means(sums: dict[str, float], config: Config) -> dict[str, float]:
    """The valid/... metrics from the sums of the evaluation step: each term divided as in the loss, nll per token, and the
    total with the weights of the last step."""
    metrics = {}
    for name, value in sums.items():
        if name.startswith("sum/"):
            metric = name.removeprefix("sum/")
            metrics[f"valid/{metric}"] = value / sums[f"weight/{divisor_of(metric)}"]
    total = 0.0
    for term, weight in objective_terms(config.objective).items():
        final = weight[-1][1] if isinstance(weight, tuple) else weight
        total += final * metrics[f"valid/loss/{term}"]
    return {"valid/loss": total, **metrics}
