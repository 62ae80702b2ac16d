"""Other programs' models are imported completely, or refused with the reason."""

import argparse
import copy
import dataclasses
import enum
import json
import os
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, text
from janus_jax.config import ArDecode, DecodeConfig, TextConfig, resolve
from janus_jax.convert import (
    ConvertError,
    ImportRequest,
    export_model,
    generation,
    import_model,
    model_config_from_released,
    params_from_released,
)
from janus_jax.convert.__main__ import main
from janus_jax.convert.fairseq import COPIES, LENGTHS, SHARED
from janus_jax.convert.report import Report
from janus_jax.decode import Generator
from janus_jax.model import Janus
from janus_jax.model.presets import PRESETS
from janus_jax.types import Specials
from tests import tiny
from tests.convert import foreign

torch = pytest.importorskip("torch")

Q_PROJ = "decoder.layers.1.encoder_attn.q_proj.weight"


@pytest.fixture(scope="module")
def translation():
    """Released arrays of a translation model with 40 tokens."""
    return foreign.released(ar_slot_position="input", mask_token="unk")[1]


@pytest.fixture(scope="module")
def bart(bpe):
    """Released arrays of a BART with the vocabulary of its tokenizer, without a length head."""
    arrays = foreign.released(vocab_size=bpe.vocab_size, **foreign.BART)[1]
    return {name: array for name, array in arrays.items() if name != LENGTHS}


@pytest.fixture
def import_arrays(tmp_path, bpe):
    """Imports arrays as a fairseq checkpoint: (written checkpoint, report)."""

    def run(arrays, args="default", tokenizer=None, **changes):
        args = foreign.settings() if args == "default" else args
        saved = foreign.save_pt(tmp_path / "model.pt", arrays, args)
        tokenizer = tokenizer or foreign.dictionary(tmp_path / "dict.txt")
        output = tmp_path / f"imported{len(list(tmp_path.glob('imported*')))}"
        report = import_model(ImportRequest("fairseq", saved, output, tokenizer=tokenizer, **changes))
        return checkpoint.load(output), report

    return run


@pytest.fixture
def bpe_file(tmp_path, bpe):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(bpe.to_bytes())
    return path


def identical(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)
    )


def ignored_names(report):
    return {name for name, _ in report.ignored}


def test_a_name_of_the_hub_is_told_apart_from_a_directory(tmp_path):
    name = Path("facebook/bart-base")
    with pytest.raises(ConvertError, match=f"--model={name}: no such .*: hf download {name} --local-dir DIR"):
        import_model(ImportRequest("hf", name, tmp_path / "out"))


def test_a_released_translation_checkpoint(import_arrays, translation, tmp_path):
    loaded, report = import_arrays(translation)
    expected = model_config_from_released(translation, heads=2)
    assert loaded.config.model == dataclasses.replace(expected, dropout=0.3, dtype="auto")
    assert identical(loaded.params, params_from_released(translation, expected))
    assert (loaded.step, loaded.about["made_by"], loaded.about["from"]) == (77, "import", "model.pt")
    assert loaded.config.objective.name == "janus"
    assert (loaded.config.data.max_source_length, loaded.config.data.max_target_length) == (40, 40)
    assert len(report.used) == len(translation) - 4
    assert ignored_names(report) == {*COPIES, "encoder.version", "decoder.version"}
    assert not report.created
    generator = Generator.from_checkpoint(tmp_path / "imported0")
    assert generator.net.specials.mask == generator.net.specials.unk == 3
    outputs = generator.generate(["w1 w2 w3", "w4"], mode="nar", passes=2, length_beam=1)
    assert all(output.text for output in outputs)


def test_a_released_pretraining_checkpoint(import_arrays, bpe_file, bpe):
    settings = foreign.settings(arch="janus_bart_base", activation_fn="gelu", no_scale_embedding=True, dropout=0.1)
    changes = foreign.BART | {"ar_stream": "query", "nar_layernorm_embedding": False, "mask_token": "unk"}
    _, arrays = foreign.released(vocab_size=bpe.vocab_size, **changes)
    loaded, _ = import_arrays(arrays, settings, bpe_file)
    expected = model_config_from_released(arrays, heads=2)
    assert loaded.config.model == dataclasses.replace(expected, dropout=0.1, dtype="auto")
    assert loaded.config.objective.weights.length == 0.0
    assert "layernorm_embedding" in loaded.params["decoder"]
    assert identical(loaded.params, params_from_released(arrays, expected))
    assert loaded.tokenizer == bpe.to_bytes()


def test_without_settings_heads_are_required(import_arrays, translation):
    with pytest.raises(ConvertError, match="--heads"):
        import_arrays(translation, None)
    with pytest.raises(ConvertError, match="3 heads do not divide"):
        import_arrays(translation, None, heads=3)
    loaded, report = import_arrays(translation, None, heads=4)
    assert loaded.config.model.heads == 4
    assert any("no settings" in note for note in report.notes)


class _Scheme(enum.Enum):
    BEST = "best"


@dataclasses.dataclass
class _ModelSettings:
    encoder_attention_heads: int = 2
    decoder_attention_heads: int = 2
    dropout: float = 0.25
    scheme: _Scheme = _Scheme.BEST


@pytest.mark.parametrize("form", ["flat", "groups", "namespace inside", "fairseq's own classes"])
def test_omegaconf_settings_load_without_omegaconf(form, import_arrays, translation, tmp_path, monkeypatch):
    omegaconf = pytest.importorskip("omegaconf")
    flat = vars(foreign.settings(dropout=0.25))
    if form == "flat":
        model = {"_name": "janus_transformer", "betas": [0.9, 0.98], "same": "${model.dropout}", **flat}
    elif form == "groups":
        side = {"attention_heads": 2, "layers": 2, "embed_dim": 16, "learned_pos": True}
        model = {"dropout": 0.25, "encoder": side, "decoder": side}
    elif form == "namespace inside":
        model = foreign.settings(dropout=0.25)
    else:
        # Stored under fairseq's module name, which does not exist when the file is read.
        module = types.ModuleType("fairseq.dataclass.configs")
        for cls in (_ModelSettings, _Scheme):
            monkeypatch.setattr(cls, "__module__", module.__name__)
            setattr(module, cls.__name__, cls)
        for name in ("fairseq", "fairseq.dataclass"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        model = omegaconf.OmegaConf.structured(_ModelSettings)
    cfg = omegaconf.OmegaConf.create({"model": model, "task": {"_name": "x"}}, flags={"allow_objects": True})
    path = foreign.save_pt(tmp_path / "cfg.pt", translation, cfg=cfg, extra_state={"best": np.float64(1.5)})
    for name in [name for name in sys.modules if name.split(".")[0] in ("omegaconf", "fairseq")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import omegaconf.dictconfig
    tokenizer = foreign.dictionary(tmp_path / "dict.txt")
    import_model(ImportRequest("fairseq", path, tmp_path / "out", tokenizer=tokenizer))
    loaded = checkpoint.load(tmp_path / "out")
    assert (loaded.config.model.heads, loaded.config.model.dropout) == (2, 0.25)


def test_files_from_before_the_zip_format(translation, tmp_path):
    path = foreign.save_pt(
        tmp_path / "old.pt", translation, foreign.settings(), legacy=True, extra={"best": np.float64(2)}
    )
    import_model(ImportRequest("fairseq", path, tmp_path / "out", tokenizer=foreign.dictionary(tmp_path / "dict.txt")))
    assert identical(
        checkpoint.load(tmp_path / "out").params,
        params_from_released(translation, model_config_from_released(translation, 2)),
    )


class _Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(legacy, translation, tmp_path):
    mark = tmp_path / "ran"
    path = foreign.save_pt(tmp_path / "evil.pt", translation, legacy=legacy, extra_state=_Evil(f"touch {mark}"))
    with pytest.raises(ConvertError, match=r"refused: its pickle calls (posix|nt)\.system"):
        import_model(ImportRequest("fairseq", path, tmp_path / "out", heads=2))
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_checkpoints(translation, tmp_path, capsys):
    whole = foreign.save_pt(tmp_path / "model.pt", translation, foreign.settings()).read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], b"\x80\x02}q\x00."):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ConvertError, match=r"bad\.pt: (truncated|holds no 'model')"):
            import_model(ImportRequest("fairseq", tmp_path / "bad.pt", tmp_path / "out"))
    torch.save({"weights": {}}, tmp_path / "bad.pt")
    with pytest.raises(ConvertError, match="holds no 'model'"):
        import_model(ImportRequest("fairseq", tmp_path / "bad.pt", tmp_path / "out"))
    (tmp_path / "out").mkdir()
    argv = ["import", "--from=fairseq", f"--model={tmp_path / 'model.pt'}", f"--output={tmp_path / 'out'}"]
    assert main(argv) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*argv[:-1], f"--output={tmp_path / 'new'}"]) == 2
    assert "give --tokenizer" in capsys.readouterr().err
    assert (
        main([*argv[:-1], f"--output={tmp_path / 'new'}", f"--tokenizer={foreign.dictionary(tmp_path / 'dict.txt')}"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "used: " in printed
    assert f"ignored: {COPIES[1]} (equal to {SHARED})" in printed


def test_missing_wrong_unknown_and_untied_tensors(import_arrays, translation):
    def changed(**arrays):
        return {name: array for name, array in (translation | arrays).items() if array is not None}

    with pytest.raises(ConvertError, match=rf"{Q_PROJ} is missing \(expected shape \(16, 16\)\): truncated or foreign"):
        import_arrays(changed(**{Q_PROJ: None}))
    with pytest.raises(ConvertError, match=rf"{Q_PROJ} has shape \(16, 8\), expected \(16, 16\): truncated or foreign"):
        import_arrays(changed(**{Q_PROJ: translation[Q_PROJ][:, :8]}))
    with pytest.raises(ConvertError, match=r"decoder\.layers\.2\..* is missing"):
        import_arrays(translation, foreign.settings(decoder_layers=3))
    with pytest.raises(ConvertError, match="untied"):
        import_arrays(changed(**{COPIES[1]: translation[SHARED] + 1}))
    with pytest.raises(ConvertError, match="plain fairseq Transformer"):
        import_arrays(changed(**{LENGTHS: None}))
    extra = changed(**{"decoder.adapter.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(ConvertError, match=r"decoder\.adapter\.weight: this architecture has no such tensor.*--ignore"):
        import_arrays(extra)
    _, report = import_arrays(extra, ignore=r"\.adapter\.")
    assert ("decoder.adapter.weight", r"matches --ignore=\.adapter\.") in report.ignored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn": "swish"}, "activation_fn 'swish'"),
        ({"encoder_learned_pos": False, "decoder_learned_pos": False}, "sinusoidal"),
        ({"decoder_attention_heads": 4}, "must have the same value"),
        ({"encoder_normalize_before": True, "decoder_normalize_before": True}, "normalize_before is True"),
    ],
)
def test_unsupported_fairseq_settings(import_arrays, translation, changes, message):
    with pytest.raises(ConvertError, match=message):
        import_arrays(translation, foreign.settings(**changes))


def test_fairseq_bart(import_arrays, bart, bpe_file, bpe):
    settings = foreign.settings(arch="bart_base", activation_fn="gelu", no_scale_embedding=True)
    # As published: fillers between the tokens and the mask, which is the last row; position tables of different lengths.
    filler = np.zeros((9, 16), np.float32)
    table = bart[SHARED]
    vocab = np.concatenate([table, filler, -table[:1]])
    extras = {
        "encoder.embed_positions._float_tensor": np.zeros(1),
        "classification_heads.x.dense.weight": np.ones((2, 2)),
    }
    longer = {"encoder.embed_positions.weight": np.pad(bart["encoder.embed_positions.weight"], ((0, 5), (0, 0)))}
    arrays = bart | extras | longer | dict.fromkeys((SHARED, *COPIES), vocab)
    loaded, report = import_arrays(arrays, settings, bpe_file)
    model = loaded.config.model
    assert (model.ar_stream, model.ar_start, model.mask_token, model.nar_layernorm_embedding, model.max_positions) == (
        "content", "eos", "mask", True, 40
    )  # fmt: skip
    # The mask of this tokenizer is its fifth token, not its last one: no row moves.
    np.testing.assert_array_equal(np.asarray(loaded.params["embed_tokens"]["embedding"])[: bpe.vocab_size], table)
    assert ignored_names(report) >= {
        *extras,
        f"{SHARED} rows 280 to 289",
        "encoder.embed_positions.weight rows 42 to 46",
    }
    assert [name for name, _ in report.created] == [LENGTHS]
    assert LENGTHS not in report.used
    head = np.asarray(loaded.params["decoder"]["embed_length"]["embedding"])
    assert head.shape == (40, 16)
    assert 0.01 < head.std() < 0.03


@pytest.mark.parametrize("form", ["args", "cfg"])
def test_a_multilingual_bart_is_refused(form, bart, bpe_file, tmp_path):
    flat = vars(foreign.settings(activation_fn="gelu"))
    languages = "ar_AR,cs_CZ,de_DE"
    state = {"args": argparse.Namespace(**flat, langs=languages)}
    if form == "cfg":
        state = {"cfg": {"model": flat, "task": {"_name": "multilingual_denoising", "langs": languages}}}
    path = foreign.save_pt(tmp_path / "model.pt", bart, **state)
    with pytest.raises(ConvertError, match="langs is 'ar_AR,cs_CZ,de_DE': a multilingual BART"):
        import_model(ImportRequest("fairseq", path, tmp_path / "out", tokenizer=bpe_file))
    assert not (tmp_path / "out").exists()


def test_the_mask_of_fairseqs_bart_is_its_last_row(import_arrays, bart, tmp_path):
    table = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    arrays = bart | dict.fromkeys((SHARED, *COPIES), table)
    tokenizer = foreign.dictionary(tmp_path / "dict.txt", words=35, mask=True)  # 40 tokens, the mask is 39
    loaded, report = import_arrays(arrays, foreign.settings(activation_fn="gelu"), tokenizer)
    rows = np.asarray(loaded.params["embed_tokens"]["embedding"])
    np.testing.assert_array_equal(rows[:39], table[:39])
    np.testing.assert_array_equal(rows[39], table[49])
    assert any("<mask>" in note for note in report.notes)


def test_a_row_is_created_only_for_a_missing_mask(import_arrays, translation, tmp_path):
    loaded, report = import_arrays(
        translation, tokenizer=foreign.dictionary(tmp_path / "dict.txt", words=36, mask=True)
    )
    rows = np.asarray(loaded.params["embed_tokens"]["embedding"])
    np.testing.assert_allclose(rows[40], translation[SHARED].mean(0), rtol=1e-6)
    assert loaded.config.model.vocab_size == 41
    assert report.created[0][0] == f"{SHARED} row 40"
    for words in (37, 60):
        with pytest.raises(ConvertError, match="tokenizer does not fit: it has"):
            import_arrays(translation, tokenizer=foreign.dictionary(tmp_path / "dict.txt", words=words))


def test_many_surplus_rows_mean_another_tokenizer(import_arrays, translation, tmp_path):
    arrays = translation | dict.fromkeys((SHARED, *COPIES), np.zeros((400, 16), np.float32))
    with pytest.raises(ConvertError, match="tokenizer does not fit: it has 40 tokens"):
        import_arrays(arrays)


def test_rows_of_fairseq_are_not_those_of_a_sentencepiece_model(import_arrays, translation, tmp_path):
    lines = ["the cat sat on the mat and sang a song", "a dog ran in the park and dug"] * 20
    tokenizer = text.train(lines, TextConfig(vocab_size=40, byte_fallback=False))
    (tmp_path / "spm.model").write_bytes(tokenizer.to_bytes())
    with pytest.raises(ConvertError, match=r"does not say which row .* give the dict\.txt"):
        import_arrays(translation, tokenizer=tmp_path / "spm.model")


def test_positions_are_cut_and_never_extended(import_arrays, translation):
    with pytest.raises(ConvertError, match="hold 40 positions"):
        import_arrays(translation, max_positions=41)
    loaded, report = import_arrays(translation, max_positions=30)
    assert loaded.params["encoder"]["embed_positions"]["embedding"].shape == (32, 16)
    assert loaded.config.data.max_source_length == 30
    assert "decoder.embed_positions.weight rows 32 to 41" in ignored_names(report)


def test_half_precision_becomes_float32(import_arrays, translation):
    half = {name: array.astype(np.float16) for name, array in translation.items()}
    loaded, report = import_arrays(half)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded.params))
    np.testing.assert_array_equal(
        np.asarray(loaded.params["embed_tokens"]["embedding"])[:40], half[SHARED].astype(np.float32)
    )
    assert report.notes == [f"{len(half)} tensors of float16 became float32"]


# Hugging Face's BART

LAYOUTS = ("safetensors", "bin", "shards", "base model in bfloat16")


@pytest.fixture(scope="module")
def stock(bpe, tmp_path_factory):
    """A random BART of transformers, and its directory, which also holds a janus_jax tokenizer."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=bpe.vocab_size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64, dropout=0.0, init_std=0.4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config).eval()
    directory = tmp_path_factory.mktemp("stock")
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_bytes(bpe.to_bytes())
    return model, directory


def rearranged(model, source, directory, layout):
    """A directory that holds `model` in this layout."""
    if layout == "safetensors":
        return source
    directory.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if layout == "bin":
        torch.save(state, directory / "pytorch_model.bin")
    elif layout == "shards":
        names = sorted(state)
        parts = {"a-1.bin": names[::2], "a-2.bin": names[1::2]}
        for part, members in parts.items():
            torch.save({name: state[name] for name in members}, directory / part)
        index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    else:
        from safetensors.torch import save_file

        bare = {name.removeprefix("model."): value.bfloat16() for name, value in state.items() if "lm_head" not in name}
        save_file(
            {name: value for name, value in bare.items() if name != "final_logits_bias"},
            directory / "model.safetensors",
        )
    return directory


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hugging_face_barts_layouts(layout, stock, bpe, tmp_path):
    model, source = stock
    report = import_model(ImportRequest("hf", rearranged(model, source, tmp_path / "m", layout), tmp_path / "out"))
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.tokenizer == bpe.to_bytes()
    assert [name for name, _ in report.created] == [LENGTHS]
    assert (loaded.config.model.ar_stream, loaded.config.objective.name) == ("content", "ar")
    half = layout == "base model in bfloat16"
    assert any("bfloat16 became float32" in note for note in report.notes) == half
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    params = jax.device_get(loaded.params)
    for name, node in {
        "shared.weight": params["embed_tokens"]["embedding"][: bpe.vocab_size],
        "encoder.layers.1.fc1.weight": params["encoder"]["layers_1"]["fc1"]["kernel"].T,
        "decoder.embed_positions.weight": params["decoder"]["embed_positions"]["embedding"],
    }.items():
        np.testing.assert_array_equal(node, (state[name].bfloat16().float() if half else state[name]).numpy())


def test_hugging_face_bart_gives_its_logits(stock, bpe, tmp_path):
    model, source = stock
    import_model(ImportRequest("hf", source, tmp_path / "out"))
    loaded = checkpoint.load(tmp_path / "out")
    net = Janus(dataclasses.replace(loaded.config.model, dtype="float32"), bpe.specials)
    rng = np.random.default_rng(0)
    source_ids = rng.integers(5, 280, (4, 9))
    source_ids[:, 0], source_ids[:, 8] = 0, 2
    source_ids[2, 5:] = [2, 1, 1, 1]
    target = np.concatenate([np.tile([2, 0], (4, 1)), rng.integers(5, 280, (4, 6))], axis=1)
    ours = np.asarray(tiny.ar_logits(net, loaded.params, source_ids, target))[..., :280]
    ids, inputs = torch.from_numpy(source_ids), torch.from_numpy(target)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=(ids != 1).long(), decoder_input_ids=inputs).logits.numpy()
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_beam_search_equals_that_of_transformers(stock, bpe, tmp_path):
    model, source = stock
    hf = pytest.importorskip("janus_jax.convert.hf.modeling_janus")
    import_model(ImportRequest("hf", source, tmp_path / "out"))
    lines, limit = ["one two three", "red, green!", "seven old blue nine"], 14
    outputs = Generator.from_checkpoint(tmp_path / "out").generate(
        lines, beam=4, lenpen=1.0, stop="current", max_length_a=0.0, max_length_b=limit
    )
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([0, *bpe.encode(line), 2]) for line in lines], batch_first=True, padding_value=1
    )
    generated = model.generate(
        input_ids=ids,
        attention_mask=(ids != 1).long(),
        decoder_input_ids=torch.tensor(
            [[2, 0]] * len(lines)
        ),  # bos is part of the prefix: neither searched for nor counted
        num_beams=4,
        length_penalty=1.0,
        early_stopping=False,
        do_sample=False,
        max_length=2 + limit + 1,
        min_new_tokens=1,
        suppress_tokens=[0, 1, 4],
        forced_eos_token_id=None,
        forced_bos_token_id=None,
        logits_processor=[
            hf.EndInTime(torch.tensor([2 + limit + 1]), 2)
        ],  # the last token is eos, with its own probability
    )
    theirs = [[token for token in row[2:].tolist() if token not in (1, 2)] for row in generated]
    assert [output.tokens for output in outputs] == theirs
    assert len({tuple(row) for row in theirs}) == len(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bart_base", "bart_large"])
def test_the_published_architectures_give_the_logits_of_transformers(name, tmp_path):
    """Random weights of the real sizes: 139 and 406 million parameters, several gigabytes of memory."""
    transformers = pytest.importorskip("transformers")
    preset = PRESETS[name]
    sizes = {"layers": preset.encoder_layers, "ffn_dim": preset.ffn_dim, "attention_heads": preset.heads}
    both = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sizes.items()}
    torch.manual_seed(0)
    config = transformers.BartConfig(vocab_size=preset.vocab_size, d_model=preset.d_model, init_std=0.05, **both)
    model = transformers.BartForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "stock")
    bpe = foreign.padded_byte_bpe(preset.vocab_size)
    (tmp_path / "stock/tokenizer.json").write_bytes(bpe.to_bytes())
    import_model(ImportRequest("hf", tmp_path / "stock", tmp_path / "out"))
    loaded = checkpoint.load(tmp_path / "out")
    architecture = dataclasses.replace(preset, ar_stream="content", length_classes=1024)
    assert loaded.config.model == dataclasses.replace(architecture, attention_dropout=0.0)
    rng = np.random.default_rng(0)
    source, target = (rng.integers(5, 50_000, (2, length)) for length in (20, 12))
    target[:, :2] = [2, 0]
    net = Janus(dataclasses.replace(loaded.config.model, dtype="float32"), bpe.specials)
    ours = np.asarray(tiny.ar_logits(net, loaded.params, source, target))
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(source), decoder_input_ids=torch.from_numpy(target)).logits.numpy()
    np.testing.assert_allclose(ours[..., : preset.vocab_size], theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mbart"}, "model_type is 'mbart'"),
        ({"normalize_before": True}, "normalize_before is True"),
        ({"eos_token_id": 7}, "eos_token_id is 7, but 2 in the tokenizer"),
        ({"decoder_start_token_id": 9}, "decoder_start_token_id is 9"),
        ({"decoder_ffn_dim": 32}, "must be equal"),
        ({"d_model": None}, "d_model is None"),
        ({"encoder_layers": 3}, r"encoder\.layers\.2\..* is missing"),
    ],
)
def test_unsupported_barts(changes, message, stock, tmp_path):
    model, source = stock
    directory = rearranged(model, source, tmp_path / "m", "bin")
    config = foreign.read_json(directory / "config.json") | changes
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConvertError, match=message):
        import_model(ImportRequest("hf", directory, tmp_path / "out"))


def test_every_copy_of_the_embedding_is_compared(stock, tmp_path):
    model, source = stock
    directory = rearranged(model, source, tmp_path / "m", "bin")
    state = torch.load(directory / "pytorch_model.bin")
    copies = [name for name, value in state.items() if torch.equal(value, state["model.shared.weight"])]
    assert len(copies) == 4
    for name in copies:
        torch.save(state | {name: state[name] + 1}, directory / "pytorch_model.bin")
        with pytest.raises(ConvertError, match=r"differs from encoder\.embed_tokens\.weight"):
            import_model(ImportRequest("hf", directory, tmp_path / "out"))


def with_generation(stock, folder, settings, config=None):
    """A copy of the stock BART with these settings in generation_config.json (a text: as it is; None: no file)."""
    shutil.copytree(stock[1], folder)
    path = folder / "generation_config.json"
    path.unlink()
    if settings is not None:
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings), encoding="utf-8")
    if config:
        own = foreign.read_json(folder / "config.json") | config
        (folder / "config.json").write_text(json.dumps(own), encoding="utf-8")
    return folder


CNN = {
    "num_beams": 4, "length_penalty": 2.0, "min_length": 56, "max_length": 142, "no_repeat_ngram_size": 3,
    "early_stopping": True, "forced_bos_token_id": 0,
}  # fmt: skip
CNN_HERE = {
    "beam": 4, "lenpen": 2.0, "min_length": 54, "max_length_a": 0.0, "max_length_b": 139, "no_repeat_ngram": 3,
    "stop": "released",
}  # fmt: skip


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_settings_of_generation_are_taken_over(place, stock, tmp_path):
    others = {"repetition_penalty": 1.2, "typical_p": 1.0, "num_beam_groups": 2, "bad_words_ids": [[9]]}
    # A limit that the tiny model's positions do not reach is none.
    files = {place.removesuffix(".json"): CNN | others | {"max_length": 30}}
    directory = with_generation(stock, tmp_path / "m", files.get("generation_config"), files.get("config"))
    report = import_model(ImportRequest("hf", directory, tmp_path / "out"))
    decode = checkpoint.load(tmp_path / "out").config.decode
    assert decode == dataclasses.replace(
        DecodeConfig(mode="ar"), ar=dataclasses.replace(ArDecode(), **CNN_HERE | {"max_length_b": 27})
    )
    taken, left = report.notes
    assert taken.startswith(f"{place}: taken over into decode.ar: beam 4, ")
    assert taken.endswith("(length_penalty counts bos there, lenpen does not)")
    expected = "repetition_penalty 1.2, num_beam_groups 2, bad_words_ids [[9]]"
    assert left == f"{place}: not taken over, since mode ar has no equal setting: {expected}"


def test_a_limit_survives_the_way_back(stock, tmp_path):
    directory = with_generation(stock, tmp_path / "m", CNN | {"max_length": 20, "min_length": 5})
    import_model(ImportRequest("hf", directory, tmp_path / "out"))
    report = export_model(tmp_path / "out", "bart", tmp_path / "bart")
    assert not any("max_length_a" in note for note in report.notes)
    written = json.loads((tmp_path / "bart/generation_config.json").read_text())
    assert (written["max_length"], written["min_new_tokens"], written["num_beams"]) == (20, 4, 4)
    import_model(ImportRequest("hf", tmp_path / "bart", tmp_path / "again"))
    assert checkpoint.config(tmp_path / "again").decode == checkpoint.config(tmp_path / "out").decode
    assert checkpoint.config(tmp_path / "again").decode.ar.max_length_b == 17


@pytest.mark.parametrize(
    ("settings", "after_eos", "expected", "left"),
    [
        ({"min_length": 12}, False, {"min_length": 11}, []),
        ({"min_new_tokens": 11, "min_length": 99}, False, {"min_length": 11}, []),
        ({"min_new_tokens": 12}, True, {"min_length": 11}, []),
        ({"min_length": 0}, True, {}, []),
        ({"max_length": 20}, False, {"max_length_a": 0.0, "max_length_b": 18}, []),
        ({"max_new_tokens": 19, "max_length": 7}, False, {"max_length_a": 0.0, "max_length_b": 18}, []),
        ({"max_new_tokens": 20}, True, {"max_length_a": 0.0, "max_length_b": 18}, []),
        ({"max_length": 2, "num_beams": 2}, True, {"beam": 2, "stop": "current"}, ["max_length"]),
        ({"num_beams": 4, "early_stopping": True}, True, {"beam": 4, "stop": "released"}, []),
        ({"max_length": 1000, "max_new_tokens": 1001}, True, {}, []),  # no shorter than the model's positions
        ({"early_stopping": "never", "do_sample": False}, True, {"stop": "best", "sample": False}, []),
        ({"do_sample": True, "top_p": 0.9}, True, {"sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.9}, []),
        ({"num_beams": 3, "do_sample": True}, True, {"beam": 3, "stop": "current"}, ["do_sample"]),
        ({"top_p": 0.9, "temperature": 0.5}, True, {}, []),  # without do_sample they change nothing
        ({"bad_words_ids": [[0], [1], [4]], "suppress_tokens": [4]}, True, {}, []),  # no output here has them
        ({"length_penalty": -1.0, "no_repeat_ngram_size": 1}, True, {}, ["length_penalty", "no_repeat_ngram_size"]),
    ],
)  # fmt: skip
def test_each_setting_of_generation(settings, after_eos, expected, left, tmp_path):
    report = Report()
    ar = generation.ar_settings(tmp_path, settings | {"forced_bos_token_id": 0}, Specials(), after_eos, report, 1000)
    assert ar == expected
    named = [note for note in report.notes if "not taken over" in note]
    assert len(named) == bool(left)
    assert all(name in named[0] for name in left)


def test_settings_of_generation_of_any_kind_break_no_import(stock, tmp_path):
    kinds = (None, [], [1], "", "2", -1, 0, 10**9, 10**400, True, 0.5, float("nan"), float("inf"), {}, {"a": [1]})
    names = [*CNN, "do_sample", "temperature", "top_k", "top_p", "min_new_tokens", "max_new_tokens", "suppress_tokens",
             "bad_words_ids", "repetition_penalty", "sequence_bias", "force_bos_token_to_be_generated"]  # fmt: skip
    for name in names:
        for value in kinds:
            ar = generation.ar_settings(tmp_path, {"do_sample": True, name: value}, Specials(), True, Report())
            resolve({"decode": {"ar": ar}})
    directory = with_generation(stock, tmp_path / "m", "{")
    report = import_model(ImportRequest("hf", directory, tmp_path / "out"))
    assert checkpoint.load(tmp_path / "out").config.decode == DecodeConfig(mode="ar")
    assert any("generation_config.json: not JSON" in note and "not taken over" in note for note in report.notes)


@pytest.mark.parametrize(
    ("settings", "config", "forced"),
    [
        ({"forced_bos_token_id": 0}, {}, True),
        (None, {"forced_bos_token_id": 0}, True),
        (None, {"force_bos_token_to_be_generated": True}, True),
        ({}, {"force_bos_token_to_be_generated": False}, False),
        ({"forced_bos_token_id": 9}, {}, False),
        (None, {"decoder_start_token_id": 0}, True),  # bos itself starts the decoder
    ],
)
def test_a_bart_that_does_not_force_bos_is_named(settings, config, forced, stock, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *_: None)
    directory = with_generation(stock, tmp_path / "m", settings, config)
    report = import_model(ImportRequest("hf", directory, tmp_path / "out"))
    assert any("here bos always follows eos" in note for note in report.notes) != forced


def test_an_import_decodes_with_the_settings_of_transformers(stock, bpe, tmp_path):
    """Greedy search, one of whose outputs ends at the limit, and one as soon as it may."""
    settings = {"num_beams": 1, "min_length": 8, "max_length": 14, "no_repeat_ngram_size": 2, "forced_bos_token_id": 0,
                "forced_eos_token_id": 2, "bad_words_ids": [[0], [1], [4]], "decoder_start_token_id": 2}  # fmt: skip
    model = copy.deepcopy(stock[0])
    with torch.no_grad():
        model.model.shared.weight[2] *= 3  # eos is likely
    model.generation_config = type(model.generation_config)(**settings, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_bytes(bpe.to_bytes())
    import_model(ImportRequest("hf", tmp_path / "m", tmp_path / "out"))
    lines = ["one two three", "red, green!"]
    outputs = Generator.from_checkpoint(tmp_path / "out").generate(lines)
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([0, *bpe.encode(line), 2]) for line in lines], batch_first=True, padding_value=1
    )
    generated = model.generate(input_ids=ids, attention_mask=(ids != 1).long()).tolist()
    theirs = [row[2 : row.index(2, 2)] for row in generated]
    assert [output.tokens for output in outputs] == theirs
    assert [len(tokens) for tokens in theirs] == [11, 6]


def test_broken_directories(stock, tmp_path):
    model, source = stock
    directory = rearranged(model, source, tmp_path / "m", "shards")
    (directory / "a-2.bin").unlink()
    with pytest.raises(ConvertError, match=r"names 'a-2\.bin'"):
        import_model(ImportRequest("hf", directory, tmp_path / "out"))
    with pytest.raises(ConvertError, match=r"config\.json: a file; name the directory that holds it"):
        import_model(ImportRequest("hf", directory / "config.json", tmp_path / "out"))
    (directory / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ConvertError, match="holds neither"):
        import_model(ImportRequest("hf", directory, tmp_path / "out"))
    whole = (source / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ConvertError, match=r"model\.safetensors: truncated"):
        import_model(ImportRequest("hf", directory, tmp_path / "out"))
    (directory / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConvertError, match="not JSON"):
        import_model(ImportRequest("hf", directory, tmp_path / "out"))
    bias = dict(model.state_dict()) | {"final_logits_bias": torch.ones(1, 280)}
    directory = rearranged(model, source, tmp_path / "n", "bin")
    torch.save(bias, directory / "pytorch_model.bin")
    with pytest.raises(ConvertError, match="final_logits_bias is not zero"):
        import_model(ImportRequest("hf", directory, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_may_be_a_file(bart, bpe, bpe_file, tmp_path):
    path = foreign.save_pt(tmp_path / "model.pt", bart, foreign.settings(activation_fn="gelu"))
    import_model(ImportRequest("fairseq", path, tmp_path / "out", tokenizer=bpe_file))
    assert text.load(checkpoint.load(tmp_path / "out").tokenizer).vocab_size == bpe.vocab_size
