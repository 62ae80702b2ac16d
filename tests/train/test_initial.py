"""Pretraining on plain text, and runs that start from another checkpoint."""

import dataclasses

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, data
from janus_jax.config import ConfigError, default_config, resolve
from janus_jax.metrics import read_metrics
from janus_jax.model import Janus
from janus_jax.text import load
from janus_jax.train import train
from janus_jax.train.__main__ import main
from janus_jax.train.initial import adopt_model, initial_params
from tests import tiny
from tests.faults.killed_runs import copy_until
from tests.train import runs


def pretraining(folder, **changes):
    """A short denoising run on a file of sentences; `changes` as in `runs.config`."""
    settings = {
        "text__model_type": "byte_bpe", "text__vocab_size": 320, "data__source": "text", "data__train": str(folder / "text.txt"),
        "data__valid": "", "data__test": "", "data__hold_out": 10, "data__max_source_length": 48, "data__max_target_length": 48,
        "model__layernorm_embedding": True, "model__activation": "gelu", "model__ar_start": "eos",
        "model__scale_embedding": False, "objective__label_smoothing": 0.0, "objective__normalize_by": "target",
        "objective__weights": {"ar": 0.5, "kl_ar_nar": 0.0, "kl_nar_aux": 0.5, "kl_ar_aux": 0.5, "length": 0.0},
        "train__eval_sentences": 4, "train__steps": 6, "optimizer__ema_decay": 0.0,
    }  # fmt: skip
    return runs.config(folder / "blocks", **(settings | changes))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder with a prepared text and a pretraining run, of AR rows alone: they compile sooner."""
    folder = tmp_path_factory.mktemp("pretrain")
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bdfgklm" for b in ("a", "o", "ei", "ut")]
    lines = [". ".join(" ".join(rng.choice(words, 9)).capitalize() for _ in range(3)) + ".\n" for _ in range(300)]
    (folder / "text.txt").write_text("".join(lines))
    data.prepare(pretraining(folder), log=str)
    train(pretraining(folder, objective__name="ar"), folder / "run")
    return folder


def finetuning(folder, tmp_path, **changes):
    """A run on the demo corpus that starts from the pretrained one."""
    same = {name: value for name, value in vars(pretraining(folder).model).items() if name != "vocab_size"}
    settings = {f"model__{name}": value for name, value in same.items()} | {"init_from": str(folder / "run")}
    settings |= {"objective__name": "ar"}
    config = runs.config(tmp_path / "demo", **(settings | {"train__steps": 4, "data__max_source_length": 60} | changes))
    return dataclasses.replace(config, text=dataclasses.replace(config.text, model=changes.get("text__model", "")))


@pytest.mark.slow
def test_pretraining_learns_reports_every_term_and_resumes_bitwise(pretrained, tmp_path):
    config = pretraining(pretrained)
    train(config, tmp_path / "whole")
    whole = checkpoint.load(tmp_path / "whole")
    copy_until(3, tmp_path / "whole", tmp_path / "run")
    metrics = train(config, tmp_path / "run")
    again = checkpoint.load(tmp_path / "run")
    assert whole.step == again.step == 6
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
    # Each per token of its own kind, whatever the loss is divided by: near the uniform distribution's at first.
    first = read_metrics(tmp_path / "run/metrics.jsonl")[0]
    for name in ("ar", "nar", "aux"):
        assert first[f"nll/{name}"] == pytest.approx(np.log(320), abs=0.3)
        assert metrics[f"valid/nll/{name}"] > 4
    assert {"valid/loss", "valid/nll/ar", "valid/nll/nar", "valid/nll/aux", "valid/loss/kl_ar_aux"} <= set(metrics)
    assert "valid/bleu_ar" not in metrics  # blocks of text have no references
    assert "valid/loss/length" not in metrics


def test_fine_tuning_starts_from_the_checkpoint_and_keeps_its_vocabulary(pretrained, tmp_path, capsys):
    config = finetuning(pretrained, tmp_path, model__max_positions=80, model__length_classes=70)
    data.prepare(config, log=str)
    prepared = data.Prepared.open(config.data.prepared, config)
    source = checkpoint.load(pretrained / "run")
    assert prepared.tokenizer_bytes == source.tokenizer
    tokenizer = load(source.tokenizer)
    net = Janus(dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size), tokenizer.specials)
    params, notes = initial_params(net, config, source.tokenizer)
    positions = params["decoder"]["embed_positions"]["embedding"]
    np.testing.assert_array_equal(positions[:66], source.params["decoder"]["embed_positions"]["embedding"])
    assert np.abs(positions[66:]).max() > 0
    np.testing.assert_array_equal(params["encoder"]["layers_0"]["fc1"]["kernel"], source.params["encoder"]["layers_0"]["fc1"]["kernel"])  # fmt: skip
    assert "decoder/embed_positions/embedding: 66 rows of 66, 16 new" in notes
    assert "decoder/embed_length/embedding: 64 rows of 64, 6 new" in notes
    train(config, tmp_path / "run")
    assert "starts from" in capsys.readouterr().err
    # A run with a checkpoint resumes from it and ignores init_from.
    copy_until(3, tmp_path / "run", tmp_path / "resumed")
    train(config, tmp_path / "resumed")
    assert checkpoint.load(tmp_path / "resumed").step == 4
    assert "starts from" not in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_anything_is_written(pretrained, tmp_path):
    config = finetuning(pretrained, tmp_path, model__ffn_dim=48)
    data.prepare(config, log=str)
    with pytest.raises(ConfigError, match=r"config\.model\.ffn_dim: 48, but .* has 32"):
        train(config, tmp_path / "run")
    config = finetuning(pretrained, tmp_path, model__activation="relu")
    with pytest.raises(ConfigError, match=r"config\.model\.activation: 'relu', but .* has 'gelu'"):
        train(config, tmp_path / "run")
    config = finetuning(pretrained, tmp_path, model__activation="relu", model__scale_embedding=True)
    all_at_once = (
        r"activation: 'relu'.*scale_embedding: True.*; set --config.model.activation=gelu --config.model.scale_emb"
    )
    with pytest.raises(ConfigError, match=all_at_once):
        train(config, tmp_path / "run")
    config = finetuning(pretrained, tmp_path, model__scale_embedding=True)
    with pytest.raises(ConfigError, match=r"config\.model\.scale_embedding: True, but .* has False"):
        train(config, tmp_path / "run")
    other = runs.config(tmp_path / "other")
    data.prepare(other, log=str)
    config = resolve({**dataclasses.asdict(other), "init_from": ""})
    tokens = data.Prepared.open(other.data.prepared, other).tokenizer_bytes
    size = load(tokens).vocab_size
    net = Janus(dataclasses.replace(config.model, vocab_size=size), load(tokens).specials)
    with pytest.raises(ConfigError, match="has another tokenizer than"):
        initial_params(net, dataclasses.replace(config, init_from=str(pretrained / "run")), tokens)
    with pytest.raises(checkpoint.CheckpointError, match="no such directory"):
        initial_params(net, dataclasses.replace(config, init_from=str(tmp_path / "absent")), tokens)
    assert not (tmp_path / "run").exists()


def test_size_and_form_of_the_model_are_those_of_the_checkpoint(pretrained, tmp_path):
    settings = default_config()
    settings.init_from = str(pretrained / "run")
    settings.model.d_model, settings.model.ffn_dim = 48, 64
    with pytest.raises(
        ConfigError, match=r"^config\.model\.ffn_dim: 64, but .* has 32; set --config\.model\.ffn_dim=32$"
    ):
        adopt_model(settings, {"model.ffn_dim"}, str(tmp_path / "run"))  # said on the command line
    note = adopt_model(settings, {"model.dropout"}, str(tmp_path / "run"))
    source = checkpoint.load(pretrained / "run").config.model
    assert note.startswith(f"training follows {pretrained / 'run'}: model.activation 'gelu' instead of 'relu', ")
    for name in ("d_model", "ffn_dim", "encoder_layers"):
        assert settings.model[name] == getattr(source, name)
    assert adopt_model(settings, {"model.ffn_dim"}, str(tmp_path / "run")) == ""
    # A run that resumes needs the other checkpoint no more.
    settings.init_from, settings.model.d_model = str(tmp_path / "gone"), 48
    assert "model.d_model" in adopt_model(settings, set(), str(pretrained / "run"))
    with pytest.raises(checkpoint.CheckpointError, match=r"config\.init_from: .*gone: no such directory"):
        adopt_model(settings, set(), str(tmp_path / "run"))


def test_an_ar_half_that_is_kept_is_read_as_it_was(pretrained, tmp_path):
    settings = default_config()
    settings.init_from, settings.model.ar_stream = str(pretrained / "run"), "content"
    free = settings.copy_and_resolve_references()
    adopt_model(free, set(), str(tmp_path / "run"))
    assert free.model.ar_stream == "content"  # the half may learn it
    settings.train.only = "adapter"
    settings.model.parallel_adapter_rank = 2
    with pytest.raises(ConfigError, match=r"config\.model\.ar_stream: 'content', but .* has 'query'"):
        adopt_model(settings, {"model.ar_stream", "model.ar_start"}, str(tmp_path / "run"))
    note = adopt_model(settings, set(), str(tmp_path / "run"))
    assert "model.ar_stream 'query' instead of 'content'" in note
    assert settings.model.ar_start == "eos"
    with pytest.raises(ConfigError, match=r"config\.model\.ar_stream: 'content', but .* has 'query'"):
        initialised(
            tmp_path / "kept", theirs={}, ours={"parallel_adapter_rank": 2, "ar_stream": "content"}, only="adapter"
        )
    _, _, notes = initialised(tmp_path / "free", theirs={}, ours={"ar_stream": "content"})
    assert notes == ["model.ar_stream: 'content' instead of 'query', which the AR half has to learn"]


def test_a_run_resumes_with_the_settings_of_its_newest_intact_checkpoint(pretrained, tmp_path):
    copy_until(6, pretrained / "run", tmp_path / "run")
    damaged, intact = (tmp_path / "run/checkpoints" / step for step in ("6", "3"))
    for file in (damaged / "assets").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="6: damaged"):
        checkpoint.config(tmp_path / "run")
    settings = default_config()
    settings.init_from = str(tmp_path / "gone")
    assert "model.d_model 16 instead of 512" in adopt_model(settings, set(), str(tmp_path / "run"))
    for file in (intact / "assets").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="3: damaged"):
        adopt_model(settings, set(), str(tmp_path / "run"))


def test_the_command_takes_the_model_over(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("janus_jax.train.__main__.dry_run", lambda config: None)
    config = finetuning(pretrained, tmp_path)
    data.prepare(config, log=str)
    stored = {name: value for name, value in dataclasses.asdict(config).items() if name != "model"}
    (tmp_path / "mine.py").write_text(
        "from janus_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        f"    config.update({stored!r})\n    return config\n"
    )
    command = [f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    command.append("--config.model.max_positions=80")
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "model.activation 'gelu' instead of 'relu'" in err
    assert main([*command, "--config.model.d_model=32"]) == 2
    assert "config.model.d_model: 32, but" in capsys.readouterr().err


def test_a_half_that_is_kept_decodes_as_it_did(pretrained, tmp_path):
    loaded = checkpoint.load(pretrained / "run")
    decode = dataclasses.replace(
        loaded.config.decode, ar=dataclasses.replace(loaded.config.decode.ar, lenpen=2.0, beam=7)
    )
    kept = dataclasses.replace(loaded.config, decode=decode)
    checkpoint.write(tmp_path / "kept", loaded.params, kept, loaded.tokenizer, {"step": 1})
    settings = default_config()
    settings.init_from, settings.objective.weights.ar = str(tmp_path / "kept"), 0.0
    free = settings.copy_and_resolve_references()
    adopt_model(free, set(), str(tmp_path / "run"))
    assert free.decode.ar.lenpen != 2.0
    settings.train.only, settings.model.parallel_adapter_rank = "adapter", 2
    note = adopt_model(settings, {"decode.ar.beam"}, str(tmp_path / "run"))
    assert "decode.ar.lenpen 2.0 instead of" in note
    assert (settings.decode.ar.lenpen, settings.decode.ar.beam) == (2.0, free.decode.ar.beam)


def test_rows_of_masks_are_read_as_they_were(pretrained, tmp_path):
    settings = default_config()
    settings.init_from, settings.model.mask_token = str(pretrained / "run"), "unk"
    with pytest.raises(ConfigError, match=r"config\.model\.mask_token: 'unk', but .* has 'mask'"):
        adopt_model(settings, {"model.mask_token"}, str(tmp_path / "run"))
    assert "model.mask_token 'mask' instead of 'unk'" in adopt_model(settings, set(), str(tmp_path / "run"))
    theirs = {"mask_token": "unk", "ctc_ratio": 2.0, "parallel_adapter_rank": 2}
    ours = {"mask_token": "mask", "ctc_input": "encoder"}
    with pytest.raises(ConfigError, match=r"config\.model\.mask_token: 'mask', but .* has 'unk'"):
        initialised(tmp_path / "kept", theirs=theirs, ours=ours, only="adapter")
    _, _, notes = initialised(tmp_path / "free", theirs=theirs, ours=ours | {"parallel_adapter_rank": 0})
    assert "decoder/layers_*/fc1_adapter/down/kernel: left out, this model has none" in notes
    assert notes[-2:] == [
        "model.mask_token: 'mask' instead of 'unk', which rows of masks have to learn",
        "model.ctc_input: 'encoder' instead of 'mask', which the CTC half has to learn",
    ]


@pytest.mark.slow
def test_layers_share_a_note(tmp_path):
    theirs = {"ctc_ratio": 2.0}
    _, _, notes = initialised(tmp_path / "plain", theirs=theirs, ours=theirs | {"parallel_adapter_rank": 2}, layers=2)
    assert "decoder/layers_*/fc1_adapter/down/kernel: new (2)" in notes


def initialised(path, *, theirs, ours, layers=1, only=""):
    """A checkpoint of a tiny model with `theirs`, and the initial parameters of a run with `ours`: (old table, new table, notes)."""
    lengths = {"max_source_length": 16, "max_target_length": 16}
    net, params = tiny.model(encoder_layers=1, decoder_layers=layers, **theirs)
    config = resolve({"model": dataclasses.asdict(net.config), "data": lengths})
    checkpoint.write(path, params, config, b"tokens", {"step": 1})
    net = Janus(dataclasses.replace(net.config, **ours), net.specials)
    kept = {"train": {"only": only}, "optimizer": {"weight_decay": 0.0}} if only else {}
    config = resolve({"model": dataclasses.asdict(net.config), "data": lengths, "init_from": str(path), **kept})
    initial, notes = initial_params(net, config, b"tokens")
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert jax.tree.map(np.shape, initial) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    np.testing.assert_array_equal(
        initial["encoder"]["layers_0"]["fc1"]["bias"], params["encoder"]["layers_0"]["fc1"]["bias"]
    )
    return params["embed_tokens"]["embedding"], initial["embed_tokens"]["embedding"], notes


# 40 tokens: a table without padding, whose blank makes it longer, and one whose padding becomes the blank.
@pytest.mark.parametrize("multiple", [8, 16])
def test_a_blank_starts_fresh_or_is_left_out(multiple, tmp_path):
    size, name = tiny.VOCAB, f"embed_tokens/embedding: row {tiny.VOCAB}, CTC's blank, is"
    plain, ctc = ({"vocab_multiple": multiple, "ctc_ratio": ratio} for ratio in (0.0, 2.0))
    old, new, notes = initialised(tmp_path / "plain", theirs=plain, ours=ctc)
    np.testing.assert_array_equal(new[:size], old[:size])
    assert 0.005 < new[size].std() < 0.04  # N(0, 0.02), not the padding that stood there
    assert not new[size + 1 :].any()
    assert notes == [f"{name} new: train it before decoding mode ctc"]

    old, new, notes = initialised(tmp_path / "ctc", theirs=ctc, ours=plain)
    np.testing.assert_array_equal(new[:size], old[:size])
    assert old[size].any()
    assert not new[size:].any()  # padding stays zero
    assert notes == [f"{name} left out: no CTC rows here"]


@pytest.mark.slow
def test_dag_rows_start_fresh_or_are_copied_into_longer_tables(tmp_path):
    _, _, notes = initialised(tmp_path / "plain", theirs={}, ours={"dag_ratio": 2.0})
    assert "decoder/embed_dag_positions/embedding: new" in notes
    assert "decoder/dag_links/gate/kernel: new" in notes
    _, _, notes = initialised(tmp_path / "dag", theirs={"dag_ratio": 2.0}, ours={"dag_ratio": 4.0, "max_positions": 80})
    assert "decoder/embed_dag_positions/embedding: 42 rows of 42, 40 new" in notes
    assert "decoder/dag_links/embed_positions/embedding: 42 rows of 42, 40 new" in notes
    _, _, notes = initialised(tmp_path / "back", theirs={"dag_ratio": 2.0}, ours={"dag_ratio": 0.0})
    assert "decoder/embed_dag_positions/embedding: left out, this model has none" in notes
    assert all("dag" in note and note.endswith(": left out, this model has none") for note in notes)


@pytest.mark.parametrize("multiple", [8, 128])
def test_a_blank_is_copied(multiple, tmp_path):
    theirs, ours = {"vocab_multiple": 8, "ctc_ratio": 2.0}, {"vocab_multiple": multiple, "ctc_ratio": 3.0}
    old, new, notes = initialised(tmp_path / "ctc", theirs=theirs, ours=ours)
    np.testing.assert_array_equal(new[: tiny.VOCAB + 1], old[: tiny.VOCAB + 1])
    assert not new[tiny.VOCAB + 1 :].any()
    assert notes == ([] if multiple == 8 else ["embed_tokens/embedding: 48 rows of 48, 80 new"])
