"""Damaged, foreign and hostile files: an import gives one line that names the place, or the right model."""

import copy
import json
import random
import re
import shutil
import sys
import zipfile

import jax
import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.convert import errors, files, importing, pickles
from janus_jax.convert.__main__ import main
from janus_jax.convert.exporting import export_model
from janus_jax.convert.fairseq import LENGTHS, SHARED
from janus_jax.convert.huggingface import bart_config
from janus_jax.settings import all_settings
from tests.convert import foreign

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

FC1 = "encoder.layers.1.fc1.weight"
KINDS = (
    None, [], [1], "", "2", "null", -1, 0, 1, 10**9, 10**400, True, False, 0.5, -0.5, float("nan"), float("inf"), {}, {"a": 1},
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Imports without writing; gives the parameters of the last import."""
    last = {}
    monkeypatch.setattr(importing.checkpoint, "write", lambda path, params, *_: last.update(params=params))
    return last


@pytest.fixture
def run(tmp_path, capsys):
    """Runs an import: None if it succeeds, or its error, which must be one line."""

    def run(source, model, *flags):
        output = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        if source == "fairseq" and (tmp_path / "dict.txt").exists():
            flags = (*flags, f"--tokenizer={tmp_path / 'dict.txt'}")
        status = main(["import", f"--from={source}", f"--model={model}", f"--output={output}", *flags])
        printed = capsys.readouterr().err
        if status == 0:
            assert printed == ""
            return None
        assert status == 2
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
        assert len(printed) < 1000
        assert not output.exists()
        return printed

    return run


@pytest.fixture(scope="module")
def bart(bpe):
    """Config and tensors of a BART in Hugging Face's names."""
    net, arrays = foreign.released(vocab_size=bpe.vocab_size, **foreign.BART)
    kept = {name: array for name, array in arrays.items() if name != LENGTHS and not name.endswith("version")}
    return bart_config(net.config, bpe.specials), {f"model.{name}": array for name, array in kept.items()}


@pytest.fixture
def hf(tmp_path, bart, bpe):
    """A function that writes a Hugging Face BART, with other settings or tensors: its directory."""
    config, arrays = bart
    directory = tmp_path / "bart"
    directory.mkdir()
    (directory / "tokenizer.json").write_bytes(bpe.to_bytes())

    def write(settings=None, tensors=None, form="safetensors"):
        (directory / "config.json").write_text(json.dumps(config | (settings or {})), encoding="utf-8")
        if form == "safetensors":
            files.write_weights(directory / "model.safetensors", arrays | (tensors or {}))
        else:
            torch.save(arrays_of_torch(arrays | (tensors or {})), directory / "pytorch_model.bin")
        return directory

    return write


@pytest.fixture
def pt(tmp_path):
    """A function that writes a fairseq checkpoint, with other settings or tensors: its file."""
    foreign.dictionary(tmp_path / "dict.txt")
    _, arrays = foreign.released(ar_slot_position="input", mask_token="unk")

    def write(tensors=None, args=None, **others):
        args = foreign.settings() if args is None else args
        tensors = arrays_of_torch(arrays | (tensors or {}))
        state = {"args": args, "cfg": None, "model": tensors, "optimizer_history": [{"num_updates": 7}]} | others
        torch.save(state, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return write


def arrays_of_torch(arrays):
    return {
        name: value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        for name, value in arrays.items()
    }


# How many kinds of value a fuzzing test tries for a setting: a few, and all of them in the slow tests.
SOME_OR_ALL = pytest.mark.parametrize("kinds", [5, pytest.param(len(KINDS), marks=pytest.mark.slow)])


@SOME_OR_ALL
def test_settings_of_hugging_face_of_any_kind(kinds, hf, bart, quick, run):
    directory, rng = hf(), random.Random(0)
    assert run("hf", directory) is None
    ignored = {"architectures", "init_std", "is_encoder_decoder", "tie_word_embeddings", "dtype", "vocab_size"}
    read = [name for name in bart[0] if name not in ignored and not name.endswith("layerdrop")]
    assert len(read) > 18
    refused = 0
    for name in read:
        for value in rng.sample(KINDS, kinds):
            hf({name: value})
            message = run("hf", directory)
            refused += message is not None
            # The place: the file and the setting, or the tensor that does not fit the setting.
            assert message is None or name in message or "truncated or foreign" in message or "must be equal" in message
    assert refused > 0.6 * len(read) * kinds


@SOME_OR_ALL
def test_settings_of_fairseq_of_any_kind(kinds, pt, quick, run):
    read = (
        "encoder_ffn_embed_dim encoder_layers decoder_layers encoder_attention_heads encoder_learned_pos activation_fn dropout "
        "encoder_normalize_before no_scale_embedding attention_dropout relu_dropout encoder decoder"
    ).split()
    rng = random.Random(0)
    for name in read:
        for value in rng.sample(KINDS, kinds):
            settings = vars(foreign.settings())
            if not name.startswith("encoder_"):
                changes = {name: value}
            else:
                changes = {name: value, name.replace("encoder", "decoder"): value}
            run("fairseq", pt(args=foreign.argparse.Namespace(**settings | changes)))
    for args in ([1], "text", 3, {"encoder_attention_heads": [2]}):
        assert "args" in run("fairseq", pt(args=args)) or args == {"encoder_attention_heads": [2]}
    for history in ("text", [], [None], [{"num_updates": -3}], [{"num_updates": "7"}], {"a": 1}):
        assert run("fairseq", pt(optimizer_history=history)) is None
    for settings in (None, [], {"config": 3, "step": 1}, {"config": "{"}, {"config": "[1]", "step": 1}):
        assert "janus_jax settings are damaged" in run("fairseq", pt(janus_jax=settings))


@pytest.fixture(scope="module")
def exports(bpe, tmp_path_factory):
    """The exports of a small checkpoint whose settings name files, by format."""
    folder = tmp_path_factory.mktemp("exports")
    config = {
        "init_from": "/secret/ada/bart",
        "text": {"model": "/secret/ada/words"},
        "data": {
            "source": "tsv", "train": "/secret/ada/a.tsv", "valid": "/secret/ada/b.tsv", "test": "/secret/ada/c.tsv",
            "prepared": "/secret/ada/set", "tfds_data_dir": "/secret/ada/tfds", "max_source_length": 30, "max_target_length": 24,
        },
        "train": {"only": "decoder"},
    }  # fmt: skip
    foreign.write_checkpoint(folder / "run", bpe, config=config, ar_stream="content", **_BART_LIKE)
    formats = ("hf", "bart", "fairseq", "safetensors")
    for name in formats:
        export_model(folder / "run", name, folder / name)
    return {name: folder / name for name in formats}


_BART_LIKE = {"layernorm_embedding": True, "activation": "gelu", "scale_embedding": False}


def test_exports_hold_no_paths(exports, tmp_path):
    for name, directory in exports.items():
        for path in directory.iterdir():
            assert b"/secret" not in path.read_bytes(), (name, path.name)
    assert "the author's files" in (exports["hf"] / "README.md").read_text(encoding="utf-8")
    for name in ("hf", "fairseq", "safetensors"):
        assert main(["import", f"--from={name}", f"--model={exports[name]}", f"--output={tmp_path / name}"]) == 0
        config = checkpoint.load(tmp_path / name).config
        assert (config.data.source, config.data.max_target_length, config.model.d_model) == ("tsv", 24, 16)
        assert (config.init_from, config.text.model, config.data.tfds_data_dir) == ("", "", "")
        assert config.train.only == "decoder"  # says that a half without weight is that of init_from


def test_every_setting_of_free_text_is_known_to_hold_a_path_or_not():
    """A new setting that holds a path must not appear in exports."""
    kept = {"data.source_lang", "data.target_lang", "data.tfds_name", "train.best_metric", "train.only"}
    left_out = {
        "init_from",
        "text.model",
        "data.train",
        "data.valid",
        "data.test",
        "data.prepared",
        "data.tfds_data_dir",
    }
    assert {setting.name for setting in all_settings() if setting.type is str} == kept | left_out


@SOME_OR_ALL
def test_settings_of_an_export_of_any_kind(kinds, exports, tmp_path, quick, run):
    rng = random.Random(0)
    for name in ("hf", "safetensors"):
        directory = tmp_path / name
        shutil.copytree(exports[name], directory)
        config = foreign.read_json(directory / "config.json")
        assert run(name, directory) is None
        for group, value in [(group, value) for group in (None, "model") for value in rng.sample(KINDS, kinds)]:
            changed = copy.deepcopy(config)
            settings = changed["janus_jax"] if name == "hf" else changed
            key = rng.choice(sorted(settings if group is None else settings[group]))
            (settings if group is None else settings[group])[key] = value
            (directory / "config.json").write_text(json.dumps(changed), encoding="utf-8")
            run(name, directory)
        (directory / "config.json").write_text(json.dumps(config | {"janus_jax_step": []}), encoding="utf-8")
        run(name, directory)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_tensors_that_are_no_finite_numbers(form, hf, bart, quick, run):
    array = bart[1][f"model.{FC1}"]
    holed, endless = array.copy(), array.copy()
    holed[3, 4] = np.nan
    endless[1, :2] = [np.inf, -np.inf]
    cases = {
        "1 numbers that are NaN": holed,
        "2 numbers that are NaN or infinite": endless,
        "infinite": np.full_like(array, 1e300, np.float64),
        "type int32": array.astype(np.int32),
        "type bool": array > 0,
        "type uint8": array.astype(np.uint8),
        "has shape (": np.float32(1.0).reshape(()),
        "has shape (32,)": array[:, 0],
        "has shape (0, 16)": array[:0],
    }
    for message, changed in cases.items():
        error = run("hf", hf(tensors={f"model.{FC1}": changed}, form=form))
        assert message in error
        assert FC1 in error
    table = bart[1]["model.encoder.embed_tokens.weight"]
    for name in ("encoder.embed_tokens.weight", "decoder.embed_positions.weight", "encoder.layernorm_embedding.weight"):
        for changed in (np.float32(1.0).reshape(()), table[0, :3], table[:0], table[None, :2]):
            assert name.removeprefix("encoder.embed_tokens.") in run(
                "hf", hf(tensors={f"model.{name}": changed}, form=form)
            )
    for rows in (1, 2):
        error = run("hf", hf(tensors={"model.decoder.embed_positions.weight": table[:rows]}, form=form))
        assert f"decoder.embed_positions.weight has {rows} rows" in error
    # A tensor that is left out may hold anything.
    directory = hf(tensors={"model.extra.count": np.int64(3).reshape(())}, form=form)
    assert "extra.count holds numbers of type int64" in run("hf", directory)
    assert run("hf", directory, "--ignore=extra") is None


def test_tensors_of_fairseq_that_are_no_dense_finite_numbers(pt, quick, run):
    weight = torch.ones(32, 16)
    cases = {
        "a sparse_coo tensor": weight.to_sparse(),
        "float8_e4m3fn": weight.to(torch.float8_e4m3fn),
        "type int32": weight.int(),
        "type complex64": weight.to(torch.complex64),
        "NaN": weight * float("nan"),
        "infinite": weight.double() * 1e300,
    }
    for message, changed in cases.items():
        error = run("fairseq", pt({FC1: changed}))
        assert message in error
        assert FC1 in error
    for name in (SHARED, LENGTHS, "decoder.embed_positions.weight", "encoder.layers.0.fc1.weight"):
        for changed in (torch.tensor(1.0), torch.ones(3), torch.ones(0, 16), torch.ones(2, 2, 2)):
            assert f"{name} has shape" in run("fairseq", pt({name: changed}))
    assert run("fairseq", pt({FC1: torch.ones(32, 16, requires_grad=True).half()})) is None
    for model in ({3: weight}, {"a": None}, {"a": [1.0]}, {}):
        path = pt()
        torch.save({"model": model}, path)
        assert "give a model's weights" in run("fairseq", path)


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), one, other)
    )


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def test_a_flipped_byte_of_a_torch_file_is_noticed(pt, quick, run):
    path = pt()
    assert run("fairseq", path) is None
    right, whole, rng = quick["params"], path.read_bytes(), random.Random(0)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for info in members:
        if info.filename.endswith(("data/0", "data/5", "data.pkl", "version")):
            # The data of a member starts behind its header, its name and the extra field that aligns it.
            start = info.header_offset + 30 + len(info.filename)
            start += int.from_bytes(whole[info.header_offset + 28 : info.header_offset + 30], "little")
            path.write_bytes(flipped(whole, start + rng.randrange(info.file_size)))
            assert f"damaged: {info.filename} differs from its checksum" in run("fairseq", path)
    for _ in range(60):  # anywhere: in headers and between the members too
        path.write_bytes(flipped(whole, rng.randrange(len(whole))))
        assert run("fairseq", path) is not None or same(quick["params"], right)
    for _ in range(10):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        assert run("fairseq", path) is not None


def test_a_torch_file_without_checksums_is_read(pt, quick, run):
    torch.serialization.set_crc32_options(False)
    try:
        path = pt()
    finally:
        torch.serialization.set_crc32_options(True)
    assert run("fairseq", path) is None


@pytest.mark.parametrize("form", ["hf", "fairseq"])
def test_a_flipped_byte_of_an_export_is_noticed(form, exports, tmp_path, quick, run):
    directory = tmp_path / "copy"
    shutil.copytree(exports[form], directory)
    assert run(form, directory) is None
    right, rng = quick["params"], random.Random(1)
    weights = directory / ("model.safetensors" if form == "hf" else "model.pt")
    whole = weights.read_bytes()
    for _ in range(40):
        weights.write_bytes(flipped(whole, rng.randrange(len(whole))))
        assert run(form, directory) is not None or same(quick["params"], right)
    if form == "hf":
        header = 8 + int.from_bytes(whole[:8], "little")
        weights.write_bytes(flipped(whole, rng.randrange(header, len(whole))))
        assert "differ from the checksum that the export wrote" in run(form, directory)
        for place in rng.choices(range(header), k=40):
            weights.write_bytes(flipped(whole, place))
            assert run(form, directory) is not None or same(quick["params"], right)


def test_a_diverged_model_is_not_exported(bpe, tmp_path, capsys):
    def diverged(arrays):
        return arrays | {FC1: arrays[FC1] * np.float32("nan")}

    foreign.write_checkpoint(tmp_path / "run", bpe, change=diverged)
    argv = ["export", f"--checkpoint={tmp_path / 'run'}", "--format=safetensors", f"--output={tmp_path / 'out'}"]
    assert main(argv) == 2
    assert re.fullmatch(f"error: {FC1} holds 512 numbers that are NaN .*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_indexes_of_shards(hf, bart, bpe, tmp_path, quick, run):
    directory = hf()
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    index = directory / "model.safetensors.index.json"
    names = dict.fromkeys(bart[1], "a.safetensors")
    for content in ({"weight_map": names}, {"weight_map": names, "metadata": None}):
        index.write_text(json.dumps(content), encoding="utf-8")
        assert run("hf", directory) is None
    for weight_map in (None, [], ["a.safetensors"], "a.safetensors", 3, {}):
        index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        assert "weight_map is" in run("hf", directory)
    for shard in (None, [], 3, "", ".", "..", "b.safetensors", "../bart/a.safetensors", "a\0", "x" * 5000, {"a": 1}):
        index.write_text(json.dumps({"weight_map": names | {SHARED: shard}}), encoding="utf-8")
        assert "fetch all shards" in run("hf", directory)
    index.write_text(json.dumps({"weight_map": names | {"absent": "a.safetensors"}}), encoding="utf-8")
    assert "'absent' is not in a.safetensors" in run("hf", directory)
    for content in ("", "[", "[]", "3", "[" * 100_000, '{"weight_map": ' * 100_000, '{"a": 1' + "0" * 10_000 + "}"):
        index.write_text(content, encoding="utf-8")
        assert str(index) in run("hf", directory)


def test_flags_of_an_import(hf, quick, run):
    directory = hf()
    for flag in ("--heads=-2", "--heads=0", "--max_positions=-5", "--ignore=("):
        assert flag in run("hf", directory, flag)
    for flag in ("--heads=3", "--heads=1000000"):
        assert "heads do not divide" in run("hf", directory, flag)
    assert "--max_positions=41" in run("hf", directory, "--max_positions=41")
    assert run("hf", directory, "--heads=4", "--max_positions=9") is None


def test_an_output_that_cannot_be_made_is_an_error_before_anything_is_read(exports, tmp_path, monkeypatch, capsys):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(checkpoint, "load", never)
    monkeypatch.setattr(files, "read_weights", never)
    (tmp_path / "file").write_text("")
    run = exports["hf"].parent / "run"
    for command in (
        ["import", "--from=hf", f"--model={exports['hf']}"],
        ["export", "--format=hf", f"--checkpoint={run}"],
        ["average", "--last=1", f"--checkpoint={run}"],
    ):
        for output, message in (("file", "exists already"), ("file/a/b", f"{tmp_path / 'file'} is no directory")):
            assert main([*command, f"--output={tmp_path / output}"]) == 2
            assert message in capsys.readouterr().err


def test_two_names_of_one_tensor(hf, bart, run):
    twice = {FC1: bart[1][f"model.{FC1}"]}
    assert f"{FC1} and model.{FC1} are both there" in run("hf", hf(tensors=twice))


def test_settings_that_hold_themselves():
    settings = {}
    settings["model"] = settings
    with pytest.raises(errors.ConvertError, match="nested too deep"):
        pickles.plain(settings)


@pytest.mark.parametrize("package", ["safetensors", "torch"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    package, exports, tmp_path, monkeypatch, run, capsys
):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    line = f"this conversion needs {package} .*: {re.escape(errors.install_command())}$"
    source, model = ("hf", exports["hf"]) if package == "safetensors" else ("fairseq", exports["fairseq"])
    assert re.search(line, run(source, model).strip())
    formats = ("hf", "bart", "safetensors") if package == "safetensors" else ("fairseq",)
    for name in formats:
        argv = [
            "export",
            f"--checkpoint={exports['hf'].parent / 'run'}",
            f"--format={name}",
            f"--output={tmp_path / 'x'}",
        ]
        assert main(argv) == 2
        assert re.search(line, capsys.readouterr().err.strip())
