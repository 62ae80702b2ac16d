"""Draft heads for a finished model: nothing else of it changes, and its output is that of greedy search."""

import dataclasses

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, data, text
from janus_jax.config import ConfigError
from janus_jax.decode import Generator
from janus_jax.decode.keywords import with_keywords
from janus_jax.metrics import read_metrics
from janus_jax.model import Janus
from janus_jax.train.__main__ import main
from tests import tiny
from tests.train import runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with prepared data and what looks like a finished run of AR and CTC."""
    folder = tmp_path_factory.mktemp("finished")
    config = runs.config(
        folder / "data", objective__name="janus_ctc", model__ctc_ratio=2.0, model__ctc_positions="own", model__max_positions=128,
        model__ar_stream="content", objective__ar_first=0.5, decode__ctc__blank_penalty=0.5,
    )  # fmt: skip
    data.prepare(config, log=str)
    tokenizer = text.load((folder / "data/tokenizer.model").read_bytes())
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    params = tiny.drawn(Janus(config.model, tokenizer.specials))
    step = config.train.steps
    checkpoint.write(folder / f"run/checkpoints/{step}", params, config, tokenizer.to_bytes(), {"step": step})
    return folder


@pytest.fixture(scope="module")
def with_heads(finished):
    """The folder of the run that trained heads, by the command."""
    arguments = [
        "--config=configs/heads.py", f"--config.init_from={finished}/run", f"--config.data.prepared={finished}/data",
        f"--workdir={finished}/heads", "--config.train.steps=40", "--config.train.log_every=10",
        "--config.optimizer.warmup_steps=5", "--config.train.eval_every=20", "--config.train.checkpoint_every=20",
        "--config.data.tokens_per_batch=1024", "--config.data.buckets=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    return finished / "heads"


@pytest.mark.slow
def test_nothing_but_the_heads_changes(finished, with_heads):
    before, after = checkpoint.load(finished / "run"), checkpoint.load(with_heads)
    assert set(after.params) - set(before.params) == {"draft_heads"}
    for name, part in before.params.items():
        jax.tree.map(np.testing.assert_array_equal, part, after.params[name])
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(after.params["draft_heads"]))
    # The model, what it was trained for, and how it decodes are taken over.
    ours, theirs = after.config.model, before.config.model
    assert ours.draft_heads == 4
    assert dataclasses.replace(ours, draft_heads=0, dropout=theirs.dropout) == theirs
    assert after.config.decode.ctc == before.config.decode.ctc
    assert after.config.objective.ar_first == 0
    generator = Generator.from_checkpoint(with_heads)
    assert generator.trained == ("ar", "ctc", "speculative")
    logged = [entry for entry in read_metrics(with_heads / "metrics.jsonl") if "loss/heads" in entry]
    assert logged[-1]["loss/heads"] < logged[0]["loss/heads"]
    assert not any("nll/ar" in entry for entry in logged), "steps compute nothing but the heads' loss"
    measured = [entry for entry in read_metrics(with_heads / "metrics.jsonl") if "valid/heads/accepted" in entry]
    assert len(measured) == 2
    assert measured[0]["valid/nll/ctc"] == pytest.approx(measured[1]["valid/nll/ctc"], rel=1e-6)


@pytest.mark.slow
def test_the_output_is_that_of_greedy_search(with_heads):
    generator = Generator.from_checkpoint(with_heads)
    lines = ["zwei rote Häuser", "der Hund", "am Montag", "3 Kilogramm", "a", "", "sie sieht die Katze"]
    greedy = generator.generate(lines, mode="ar", beam=1)
    drafted = generator.generate(lines, mode="speculative", draft="always")
    assert [output.tokens for output in drafted] == [output.tokens for output in greedy]
    assert sum(output.statistics.get("drafts", 0) for output in drafted) == 0
    assert sum(output.statistics.get("rounds", 0) for output in drafted) > 0


def test_heads_are_asked_of_a_model_without_them(finished):
    generator = Generator.from_checkpoint(finished / "run")
    with pytest.raises(ConfigError, match=r"draft_from: heads, but the model has none .*configs/heads.py"):
        generator.generate(["a"], mode="speculative", draft_from="heads")
    with pytest.raises(ConfigError, match="draft_lengths: 2, but the CTC half makes one draft"):
        generator.generate(["a"], mode="speculative", draft_lengths=2)
    assert with_keywords(generator.decode_config, {"mode": "speculative"}).speculative.draft_from == "auto"


def command(finished, *more, init_from="run", workdir="other"):
    return [
        "--config=configs/heads.py", f"--config.init_from={finished}/{init_from}", f"--config.data.prepared={finished}/data",
        f"--workdir={finished}/{workdir}", *more,
    ]  # fmt: skip


def test_a_model_without_a_trained_ar_half_is_refused(finished, capsys):
    loaded = checkpoint.load(finished / "run")
    objective = dataclasses.replace(loaded.config.objective, name="cmlm", ar_first=0.0)
    config = dataclasses.replace(loaded.config, objective=objective)
    checkpoint.write(finished / "parallel/3", loaded.params, config, loaded.tokenizer, {"step": 3})
    assert main(command(finished, init_from="parallel")) == 2
    assert "parallel has no trained AR half, and draft heads read AR rows" in capsys.readouterr().err
    assert not (finished / "other").exists()


def test_heads_of_an_earlier_version_are_refused(finished):
    loaded = checkpoint.load(finished / "run")
    model = dataclasses.replace(loaded.config.model, draft_heads=4)
    first = loaded.params["decoder"]["layers_0"]["fc1"]
    heads = dict.fromkeys(("start", "query", "inner", "outer"), first)  # no key
    config = dataclasses.replace(loaded.config, model=model)
    checkpoint.write(
        finished / "earlier/3", loaded.params | {"draft_heads": heads}, config, loaded.tokenizer, {"step": 3}
    )
    with pytest.raises(
        ValueError, match=r"earlier/3: its draft heads are those of an earlier version.*configs/heads.py"
    ):
        Generator.from_checkpoint(finished / "earlier/3")


def test_heads_without_a_weight_are_refused(finished, capsys):
    assert main(command(finished, "--config.objective.weights.heads=0")) == 2
    assert (
        "config.objective.weights.heads: no weight in objective 'ar', but train.only=heads" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(with_heads, finished):
    before = checkpoint.load(with_heads)
    small = ["--config.train.steps=40", "--config.train.log_every=10", "--config.optimizer.warmup_steps=5"]
    small += ["--config.train.eval_every=20", "--config.train.checkpoint_every=20"]
    small += ["--config.data.tokens_per_batch=1024", "--config.data.buckets=1"]
    assert main(command(finished, *small, workdir="heads")) == 0
    jax.tree.map(np.testing.assert_array_equal, before.params, checkpoint.load(with_heads).params)
