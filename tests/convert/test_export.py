"""Exports compute the same as the checkpoint, and an import restores them completely."""

import dataclasses
import functools
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, config
from janus_jax.convert import ConvertError, ImportRequest, export_model, exporting, import_model
from janus_jax.convert.__main__ import main
from janus_jax.convert.fairseq import COPIES, LENGTHS, SHARED
from janus_jax.convert.files import TOKENIZER
from janus_jax.decode import Generator
from janus_jax.text import TokenizerError, load, train
from tests import tiny
from tests.convert import foreign

pytest.importorskip("safetensors")

ROOT = Path(__file__).resolve().parents[2]
TABLE = "decoder.embed_positions.weight"


@pytest.fixture(scope="module")
def sentencepiece():
    settings = {"vocab_size": 90, "byte_fallback": False, "model_type": "bpe"}
    return train(foreign.LINES, config.resolve({"text": settings}).text)


ARCHITECTURES = {
    "translation": {"ar_slot_position": "input", "mask_token": "unk"},
    "pre-norm, content stream": {"norm": "pre", "ar_stream": "content", "encoder_layers": 1},
    "bart": foreign.BART,
    "bart, bos first": foreign.BART | {"ar_start": "bos"},
    "bart, bos first, slots at their inputs": foreign.BART | {"ar_start": "bos", "ar_slot_position": "input"},
}


@pytest.fixture(scope="module")
def checkpoint_of(bpe, sentencepiece, tmp_path_factory):
    """A function: name of an architecture -> (checkpoint, network, parameters, tokenizer), written once."""
    directory = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def checkpoint_of(name):
        tokenizer = bpe if "bart" in name else sentencepiece
        path = directory / name.replace(" ", "_")
        return path, *foreign.write_checkpoint(path, tokenizer, **ARCHITECTURES[name]), tokenizer

    return checkpoint_of


def identical(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    )


@pytest.mark.parametrize("form", ["hf", "fairseq", "safetensors"])
@pytest.mark.parametrize("name", ["translation", "pre-norm, content stream", "bart"])
def test_an_import_restores_an_export_bit_for_bit(name, form, checkpoint_of, tmp_path, capsys):
    if form == "fairseq":
        pytest.importorskip("torch")
    path, _, params, tokenizer = checkpoint_of(name)
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["export", f"--checkpoint={path}", f"--format={form}", f"--output={out}"]) == 0
    assert main(["import", f"--from={form}", f"--model={out}", f"--output={back}"]) == 0
    assert capsys.readouterr().out.count("used: ") == 2
    before, after = checkpoint.load(path), checkpoint.load(back)
    assert identical(after.params, before.params)
    assert identical(after.params, params)
    assert after.config == before.config
    assert after.config.model.vocab_size == 0  # as before: the size comes from the tokenizer
    assert after.tokenizer == before.tokenizer == tokenizer.to_bytes()
    assert (after.step, after.about["made_by"]) == (12, "import")
    assert "one_space" not in after.about  # this checkpoint does not say that preparation has cleaned its text
    with pytest.raises(ConvertError, match="holds its settings"):
        import_model(ImportRequest(form, out, tmp_path / "again", heads=2))


@pytest.mark.parametrize("form", ["hf", "fairseq", "safetensors"])
def test_an_export_without_its_tokenizer_names_the_file(form, checkpoint_of, tmp_path):
    """As transformers' Trainer saves a fine-tuned export."""
    if form == "fairseq":
        pytest.importorskip("torch")
    path = checkpoint_of("translation")[0]
    export_model(path, form, tmp_path / "out")
    lost = (tmp_path / "out" / TOKENIZER).rename(tmp_path / TOKENIZER)
    with pytest.raises(ConvertError, match=rf"out: without {TOKENIZER} .* --tokenizer=EXPORT/{TOKENIZER}"):
        import_model(ImportRequest(form, tmp_path / "out", tmp_path / "back"))
    with pytest.raises(TokenizerError, match="absent"):
        import_model(ImportRequest(form, tmp_path / "out", tmp_path / "back", tokenizer=tmp_path / "absent.json"))
    import_model(ImportRequest(form, tmp_path / "out", tmp_path / "back", tokenizer=lost))
    assert checkpoint.load(tmp_path / "back").tokenizer == checkpoint.load(path).tokenizer


@pytest.mark.parametrize("form", ["hf", "fairseq", "safetensors"])
def test_an_export_knows_that_white_space_was_one_space(form, bpe, tmp_path):
    if form == "fairseq":
        pytest.importorskip("torch")
    foreign.write_checkpoint(tmp_path / "run", bpe, about={"data": "0123456789ab"}, **foreign.BART)
    last = tmp_path / "run"
    for time in ("once", "twice"):  # an import of an export of an import
        out, back = (tmp_path / f"{time} {kind}" for kind in ("out", "back"))
        export_model(last, form, out)
        import_model(ImportRequest(form, out, back))
        last = back
        assert checkpoint.load(last).about["one_space"] is True
    assert Generator.from_checkpoint(last).one_space


def test_an_export_without_one_of_its_tensors_is_refused(checkpoint_of, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    export_model(checkpoint_of("bart")[0], "safetensors", tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    arrays = safetensors.load_file(weights)
    assert LENGTHS in arrays
    safetensors.save_file({name: array for name, array in arrays.items() if name != LENGTHS}, weights)
    with pytest.raises(ConvertError, match=f"{LENGTHS} is missing"):
        import_model(ImportRequest("safetensors", tmp_path / "out", tmp_path / "back"))


def test_safetensors_need_no_torch(checkpoint_of, tmp_path):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from janus_jax.convert.__main__ import main
assert main(["export", "--checkpoint={checkpoint_of("bart")[0]}", "--format=safetensors", "--output={tmp_path / "out"}"]) == 0
assert main(["export", "--checkpoint={checkpoint_of("bart")[0]}", "--format=hf", "--output={tmp_path / "hf"}"]) == 0
assert main(["import", "--from=hf", "--model={tmp_path / "hf"}", "--output={tmp_path / "back"}"]) == 0
sys.exit(main(["export", "--checkpoint={checkpoint_of("bart")[0]}", "--format=fairseq", "--output={tmp_path / "pt"}"]))
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2, process.stderr
    assert "pip install -r requirements-convert.txt" in process.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "hf", "out"]  # no half-written directory
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["about.json", "config.json", TOKENIZER, "model.safetensors"]
    text = (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
    assert config.from_json(text) == checkpoint.load(checkpoint_of("bart")[0]).config


# fairseq


@pytest.mark.parametrize("name", ["golden_mt_1", "golden_bart_1"])
def test_fairseq_files_hold_exactly_the_released_tensors(name, golden, tmp_path):
    torch = pytest.importorskip("torch")
    params = {
        key.removeprefix("param/"): array for key, array in np.load(golden(name)).items() if key.startswith("param/")
    }
    saved = foreign.save_pt(tmp_path / "released.pt", params)
    tokenizer = foreign.dictionary(tmp_path / "dict.txt", words=46)
    import_model(ImportRequest("fairseq", saved, tmp_path / "imported", tokenizer=tokenizer, heads=4))
    report = export_model(tmp_path / "imported", "fairseq", tmp_path / "out")
    assert not report.notes  # the released code computes the same as this model
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=False)
    weights = {key: value.numpy() for key, value in state["model"].items()}
    assert {key: (value.shape, value.dtype) for key, value in weights.items()} == {
        key: (value.shape, value.dtype) for key, value in params.items()
    }
    for key, value in params.items():
        assert value.tobytes() == weights[key].tobytes(), key
    assert state["args"].encoder_attention_heads == state["args"].decoder_attention_heads == 4
    assert (tmp_path / "out" / "dict.txt").read_bytes() == tokenizer.read_bytes()


@pytest.mark.parametrize("name", ["translation", "bart"])
def test_lines_of_dict_txt_are_the_ids(name, checkpoint_of, tmp_path):
    pytest.importorskip("torch")
    path, net, _, tokenizer = checkpoint_of(name)
    report = export_model(path, "fairseq", tmp_path / "out")
    words = [line.rsplit(" ", 1)[0] for line in (tmp_path / "out" / "dict.txt").read_text("utf-8").splitlines()]
    assert len(words) == len(set(words)) == net.config.vocab_size - 4
    assert words[tokenizer.specials.mask - 4] == "<mask>"
    space = {"bart": "\u0120", "translation": "\u2581"}[name]  # how this kind of vocabulary writes a space
    for number in tokenizer.encode("one two"):
        assert words[number - 4].replace(space, "\u2581") == tokenizer.pieces([number])[0]
    assert any("mask_token" in note for note in report.notes) == (name == "bart")


# transformers


def batch(vocab, start):
    """Source and decoder tokens of three sentences."""
    rng = np.random.default_rng(0)
    source, target = rng.integers(5, vocab, (3, 9)), rng.integers(5, vocab, (3, 7))
    source[:, 0], source[:, 8] = 0, 2
    source[1, 6:] = [2, 1, 1]
    return source, np.concatenate([np.tile(start, (3, 1)), target], axis=1)


def logits(net, params, source, target):
    return np.asarray(tiny.ar_logits(net, params, source, target))[..., : net.config.vocab_size]


def torch_logits(model, source, target):
    import torch

    ids = torch.from_numpy(source)
    with torch.no_grad():
        decoder_input_ids = torch.from_numpy(target)
        output = model(input_ids=ids, attention_mask=(ids != 1).long(), decoder_input_ids=decoder_input_ids)
        return output.logits.numpy()


@pytest.mark.parametrize("name", ["translation", "bart"])
def test_hf_directories_load_and_agree(name, checkpoint_of, tmp_path, transformers):
    path, net, params, tokenizer = checkpoint_of(name)
    export_model(path, "hf", tmp_path / "out")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    source, target = batch(net.config.vocab_size, [0] if name == "translation" else [2, 0])
    np.testing.assert_allclose(torch_logits(model, source, target), logits(net, params, source, target), atol=1e-4)
    expected = sys.modules[type(model).__module__].default_generation_config(
        model.config, beam=3, lenpen=0.7, stop="current", max_target_length=24
    )
    written = foreign.read_json(tmp_path / "out" / "generation_config.json")
    assert {key: value for key, value in expected.to_dict().items() if key in written} == written
    assert model.config.mask_token_id == (3 if name == "translation" else 4)
    wrapped = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert wrapped("one two")["input_ids"] == [0, *tokenizer.encode("one two"), 2]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert config.config_hash(checkpoint.load(path).config) in card
    code = card.split("```python\n")[1].split("```")[0].replace('"out"', repr(str(tmp_path / "out")))
    exec(compile(code, "README.md", "exec"), {})


BARTS = ["bart", "bart, bos first", "bart, bos first, slots at their inputs"]


@pytest.mark.parametrize("name", BARTS)
def test_stock_bart_computes_the_autoregressive_half(name, checkpoint_of, tmp_path, transformers):
    path, net, params, _ = checkpoint_of(name)
    report = export_model(path, "bart", tmp_path / "out")
    assert LENGTHS in [ignored for ignored, _ in report.ignored]
    model, info = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    source, target = batch(net.config.vocab_size, [2, 0] if name == "bart" else [0])
    theirs = torch_logits(model.eval(), source, target)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(theirs, logits(net, params, source, target), atol=1e-4)
    # The import of the export computes the same, with BART's positions.
    import_model(ImportRequest("hf", tmp_path / "out", tmp_path / "back"))
    before, after = checkpoint.load(path), checkpoint.load(tmp_path / "back")
    assert after.tokenizer == before.tokenizer
    assert after.config.model.ar_start == net.config.ar_start
    again = dataclasses.replace(net, config=dataclasses.replace(after.config.model, dtype="float32"))
    np.testing.assert_allclose(logits(again, after.params, source, target), theirs, atol=1e-4)
    after.params["decoder"].pop("embed_length")
    before.params["decoder"].pop("embed_length")
    shifted = "decoder/embed_positions/embedding"
    differing = [
        "/".join(key.key for key in where)
        for (where, x), y in zip(
            jax.tree_util.tree_leaves_with_path(before.params),
            jax.tree.leaves(jax.device_get(after.params)),
            strict=True,
        )
        if x.tobytes() != y[: len(x)].tobytes()
    ]
    assert differing == ([shifted] if name == "bart, bos first" else [])


@pytest.mark.parametrize(("name", "message"), [("translation", "ar_stream"), ("pre-norm, content stream", "norm is")])
def test_models_that_no_bart_equals_are_refused(name, message, checkpoint_of, tmp_path):
    with pytest.raises(ConvertError, match=message):
        export_model(checkpoint_of(name)[0], "bart", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_ar_half_that_was_never_trained_is_refused(bpe, tmp_path):
    config = {"objective": {"weights": {"ar": 0.0, "kl_ar_nar": 0.0, "kl_ar_aux": 0.0}}}
    foreign.write_checkpoint(tmp_path / "run", bpe, config=config, **foreign.BART)
    with pytest.raises(ConvertError, match=r"holds the AR half, but .* trained only for nar and .*--format=hf"):
        export_model(tmp_path / "run", "bart", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    # What `train.only` left as it was is a finished AR half.
    kept = config | {"init_from": "runs/bart", "train": {"only": "decoder"}}
    foreign.write_checkpoint(tmp_path / "kept", bpe, config=kept, **foreign.BART)
    export_model(tmp_path / "kept", "bart", tmp_path / "out")


@pytest.mark.parametrize("name", BARTS[:2])
def test_transformers_generates_with_the_written_settings(name, checkpoint_of, tmp_path, transformers):
    import torch

    path, _, _, tokenizer = checkpoint_of(name)
    export_model(path, "bart", tmp_path / "out")
    model = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[0, *tokenizer.encode("one two"), 2]])
    generated = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=1)[0].tolist()
    start = [2, 0] if name == "bart" else [0]
    assert generated[: len(start)] == start
    inner = generated[len(start) : -1]
    assert len(inner) >= 1
    assert not {0, 1, 2, 4} & set(inner)
    [output] = Generator.from_checkpoint(path).generate(
        ["one two"], beam=1, max_length_a=0.0, max_length_b=22, min_length=1
    )
    assert output.tokens == inner


@pytest.mark.parametrize("name", BARTS[:2])
def test_ctranslate2_gives_the_same_translations(name, checkpoint_of, tmp_path, transformers):
    ctranslate2 = pytest.importorskip("ctranslate2")
    path = checkpoint_of(name)[0]
    export_model(path, "bart", tmp_path / "out")
    ctranslate2.converters.TransformersConverter(str(tmp_path / "out")).convert(str(tmp_path / "ct2"))
    wrapped = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = ["one two three", "red, green!", "seven old blue nine", "new"]
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), inter_threads=1, intra_threads=1)
    results = translator.translate_batch(
        [wrapped.convert_ids_to_tokens(wrapped(line)["input_ids"]) for line in lines],
        # The decoder's prefix is eos, bos; CTranslate2 adds only eos.
        target_prefix=[["<s>"]] * len(lines) if name == "bart" else None,
        beam_size=1,
        max_decoding_length=20,
        min_decoding_length=2,
        suppress_sequences=[["<pad>"], ["<s>"], ["<mask>"]],
    )
    theirs = [
        [token for token in wrapped.convert_tokens_to_ids(result.hypotheses[0]) if token != 0][:18]
        for result in results
    ]
    outputs = Generator.from_checkpoint(path).generate(lines, beam=1, max_length_a=0.0, max_length_b=22)
    assert [output.tokens[:18] for output in outputs] == theirs
    assert len({tuple(tokens) for tokens in theirs}) > 1


# Command line


def test_mistakes_are_reported_and_write_nothing(checkpoint_of, tmp_path, capsys):
    path = checkpoint_of("bart")[0]
    argv = ["export", f"--checkpoint={path}", "--format=safetensors"]
    (tmp_path / "there").mkdir()
    assert main([*argv, f"--output={tmp_path / 'there'}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", f"--checkpoint={tmp_path}", "--format=hf", f"--output={tmp_path / 'new'}"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    assert main(["import", "--from=hf", f"--model={tmp_path / 'none'}", f"--output={tmp_path / 'new'}"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_released_names_in_the_weights(checkpoint_of, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path, net, _, tokenizer = checkpoint_of("bart")
    export_model(path, "safetensors", tmp_path / "out")
    arrays = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert arrays[SHARED].shape == (tokenizer.vocab_size, 16)  # without vocabulary padding
    assert not set(COPIES) & set(arrays)
    assert arrays[TABLE].shape == (net.config.max_positions + 2, 16)
    assert load((tmp_path / "out" / TOKENIZER).read_bytes()).vocab_size == tokenizer.vocab_size


def test_a_repeated_word_keeps_the_id_that_the_tokenizer_gives_it():
    tokenizer = load(b"#janus_jax fairseq dictionary\na 1\nb 1\na 1 #fairseq:overwrite\nmadeupword0004 1\n")
    assert tokenizer.encode("a b") == [6, 5]
    exported = types.SimpleNamespace(
        tokenizer=tokenizer, specials=tokenizer.specials, model=types.SimpleNamespace(vocab_size=8)
    )
    again = load(b"#janus_jax fairseq dictionary\n" + exporting._dictionary(exported))
    assert again.encode("a b madeupword0004") == [6, 5, 7]
    assert len(set(again.words)) == 8
