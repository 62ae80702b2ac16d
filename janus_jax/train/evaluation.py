"""What an evaluation measures: the loss over the validation split, and scores of a decoded sample of it."""

import jax

from janus_jax import parallel, processes
from janus_jax.config import Config, ParallelConfig, objective_terms
from janus_jax.data import Prepared, eval_batches
from janus_jax.decode import MODES, Generator, trained_modes
from janus_jax.evaluate import score
from janus_jax.model import Janus
from janus_jax.text import Tokenizer
from janus_jax.train.step import jit_eval_step
from janus_jax.types import Params


class Evaluation:
    """Evaluates parameters of one run, whose devices may belong to several processes.

    Args:
      net: the model; config: of the run; prepared: its data; tokenizer: of the data; mesh: the run's devices.
    """

    def __init__(self, net: Janus, config: Config, prepared: Prepared, tokenizer: Tokenizer, mesh: jax.sharding.Mesh):
        self._net, self._config, self._prepared, self._tokenizer, self._mesh = net, config, prepared, tokenizer, mesh
        self._step = jit_eval_step(net, config, mesh)
        self._process, self._processes = jax.process_index(), jax.process_count()
        self._share = parallel.batch_share(mesh)

    def measure(self, params: Params) -> dict[str, float]:
        """The figures, alike on all processes; {} without a validation split."""
        if "valid" not in self._prepared.splits:
            return {}
        sums: dict[str, float] = {}
        for batch in eval_batches(self._prepared, self._config, "valid", *self._share):
            values = self._step(params, parallel.put_batch(self._mesh, batch))
            for name, value in jax.device_get(values).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return _means(sums, self._config) | self._scores(params)

    def _scores(self, params: Params) -> dict[str, float]:
        """BLEU of the first validation sentences, decoded by every half of the model that the objective trains."""
        config = self._config
        count = min(config.train.eval_sentences, len(self._prepared.split("valid")))
        if not count or config.data.source == "text":  # blocks of text have no references
            return {}
        mesh = self._mesh
        if self._processes > 1:
            # Searches end when their sentences are done, which processes would have to agree on: each decodes its own.
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
        found = {}
        for name in trained_modes(config.objective):
            if (settings := MODES[name].validation) is not None:
                outputs = generator.generate(sources[self._process :: self._processes], mode=name, **settings)
                texts = [""] * count
                for process, part in enumerate(processes.gathered([output.text for output in outputs])):
                    texts[process :: self._processes] = part
                found[f"valid/bleu_{name}"] = score(texts, references)["bleu"]
        return found


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
