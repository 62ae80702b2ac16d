"""Preparing a dataset: filters and their statistics, what is written, all or nothing, the command."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from janus_jax import config as config_lib
from janus_jax import data, text, train
from janus_jax.data import __main__ as command
from janus_jax.data import report, store
from tests.data.conftest import small_config, with_data

MULTI30K = pathlib.Path(__file__).resolve().parents[2].parent / "shared/data/multi30k"
tokenizer_module = importlib.import_module("janus_jax.data.tokenizer")
prepare_module = importlib.import_module("janus_jax.data.prepare")  # the package exports a function of that name
QUIET = {"log": lambda _: None}
CLEAN = [(f"Satz {i} ist hier und bleibt", f"sentence {i} is here to stay") for i in range(80)]


def parallel_config(directory, **changes):
    files = {
        "source": "parallel", "train": str(directory / "train"), "valid": str(directory / "valid"), "test": "",
        "prepared": str(directory / "prepared"), "tokens_per_batch": 1024, "buckets": 2, **changes,
    }  # fmt: skip
    settings = config_lib.default_config()
    settings.text.update({"vocab_size": 298})
    settings.data.update(files)
    return config_lib.resolve(settings)


def write(directory, train, valid=CLEAN[:5]):
    for name, pairs in (("train", train), ("valid", valid)):
        for i, lang in enumerate(("de", "en")):
            sides = (side if isinstance(side, bytes) else side.encode() for side in (pair[i] for pair in pairs))
            (directory / f"{name}.{lang}").write_bytes(b"".join(side + b"\n" for side in sides))


def test_filters_count_and_place_what_they_drop(tmp_path):
    bad = [
        (b"nicht \xff gut", "not good"),
        ("Glocke \x07", "bell"),
        ("", "nothing"),
        ("etwas", "  \u00a0 "),
        ("lang " * 300, "long"),
        ("kurz", "long " * 300),
        ("ein Satz", "sentence is here to stay " * 5),
        ("\u200b", "invisible"),
    ]
    write(tmp_path, CLEAN[:40] + bad + [("zwei   Wörter\u2028hier", " two\twords here ")] + CLEAN[40:])
    config = parallel_config(tmp_path, max_length_ratio=5.0)
    result = data.prepare(config, **QUIET)
    train = result["splits"]["train"]
    assert train["read"] == 89
    assert train["kept"] == 81
    counts = {reason: entry["count"] for reason, entry in train["dropped"].items()}
    assert counts.pop("empty source") == 2
    assert counts == dict.fromkeys(
        ["not UTF-8", "control character", "empty target", "source too long", "target too long", "length ratio"], 1
    )
    file = tmp_path / "train.de"
    places = {reason: entry["examples"][0]["where"] for reason, entry in train["dropped"].items()}
    assert places["not UTF-8"] == f"{file}:41"
    assert places["length ratio"] == f"{file}:47"
    prepared = data.Prepared.open(config.data.prepared, config)
    tokenizer = text.load(prepared.tokenizer_bytes)
    row = prepared.split("train").padded("target", np.array([40]), 40)[0]
    assert tokenizer.decode(row) == "two words here"


def test_at_most_five_examples_of_each_reason(tmp_path):
    write(tmp_path, CLEAN + [("", "x")] * 9)
    entry = data.prepare(parallel_config(tmp_path), **QUIET)["splits"]["train"]["dropped"]["empty source"]
    assert (entry["count"], len(entry["examples"])) == (9, 5)


def test_dataset_is_what_the_tokenizer_says(prepared):
    tokenizer = text.load(prepared.tokenizer_bytes)
    sentences = prepared.text("test")
    assert len(sentences) == 40
    builder = tfds.builder_from_directory(str(prepared.directory / "janus_pairs" / "1.0.0"))
    assert builder.info.file_format.value == "array_record"
    rows = builder.as_data_source("test")
    for i, (source, target) in enumerate(sentences):
        assert rows[i]["source"].tolist() == [0, *tokenizer.encode(source), 2]
        assert rows[i]["target"].tolist() == [0, *tokenizer.encode(target), 2]
    assert sorted(p.name for p in prepared.directory.iterdir()) == [
        "config.json", "janus_pairs", "lengths.npz", "report.json", "text", "tokenizer.model"
    ]  # fmt: skip
    assert config_lib.from_json((prepared.directory / "config.json").read_text()) == prepared.config
    with pytest.raises(data.DataError, match="train split is not stored"):
        prepared.text("train")


def test_report_adds_up(prepared):
    for part in prepared.report["splits"].values():
        for side in ("source", "target"):
            assert sum(part["length_histogram"][side].values()) == part["kept"]
    table = prepared.report["buckets"]
    assert sum(bucket["examples"] for bucket in table) == 700
    tokens = sum(prepared.report["splits"]["train"]["tokens"].values())
    cells = [b["batches"] * b["rows"] * (b["source_length"] + b["target_length"]) for b in table]
    real = sum(c * (1 - b["padding"]) for c, b in zip(cells, table, strict=True))
    assert real == pytest.approx(tokens, rel=1e-3)
    shown = report.format_report(prepared.report)
    assert "kept 700 of 700" in shown


def test_histogram_by_hand():
    assert report.length_histogram(np.array([3, 4, 5, 9, 30])) == {
        "1-4": 2,
        "5-8": 1,
        "9-12": 1,
        "13-16": 0,
        "17-24": 0,
        "25-30": 1,
    }


def test_second_run_keeps_the_directory(tmp_path):
    write(tmp_path, CLEAN)
    config = parallel_config(tmp_path)
    first = data.prepare(config, **QUIET)
    stamp = (tmp_path / "prepared/lengths.npz").stat().st_mtime_ns
    lines = []
    # Batching settings may differ
    assert data.prepare(with_data(config, tokens_per_batch=4096, seed=5), log=lines.append) == first
    assert "already prepared" in lines[0]
    assert (tmp_path / "prepared/lengths.npz").stat().st_mtime_ns == stamp


def test_a_damaged_dataset_is_not_called_prepared(tmp_path):
    write(tmp_path, CLEAN)
    config = parallel_config(tmp_path)
    data.prepare(config, **QUIET)
    (tmp_path / "prepared/lengths.npz").unlink()
    with pytest.raises(data.DataError, match=r"lengths\.npz: missing.* prepare it again .*\(--overwrite does so\)"):
        data.prepare(config, **QUIET)
    data.prepare(config, overwrite=True, **QUIET)
    assert len(data.Prepared.open(config.data.prepared).split("train")) == len(CLEAN)


def test_the_current_folder_is_no_place_for_a_dataset(tmp_path, monkeypatch):
    write(tmp_path, CLEAN)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "link").symlink_to("empty")
    for place in (".", "../empty", tmp_path / "link"):
        with pytest.raises(data.DataError, match="the current folder cannot be replaced; name a folder in it"):
            data.prepare(with_data(parallel_config(tmp_path), prepared=str(place)), **QUIET)
    with pytest.raises(config_lib.ConfigError, match=r"gs://bucket/mine is an address, no folder; mount the bucket"):
        config_lib.resolve({"data": {"prepared": "gs://bucket/mine"}})


def test_other_settings_or_files_are_refused_unless_overwritten(tmp_path):
    write(tmp_path, CLEAN)
    config = parallel_config(tmp_path)
    data.prepare(config, **QUIET)
    other = with_data(config, max_source_length=100)
    with pytest.raises(data.DataError, match=r"data\.max_source_length was 256, is 100.*--overwrite"):
        data.prepare(other, **QUIET)
    with pytest.raises(data.DataError, match=r"data\.max_source_length was 256, is 100"):
        data.Prepared.open(config.data.prepared, other)
    data.prepare(other, overwrite=True, **QUIET)
    assert data.Prepared.open(config.data.prepared, other).report["settings"]["data.max_source_length"] == 100
    write(tmp_path, CLEAN[:70])
    with pytest.raises(data.DataError, match=r"train\.de was \d+, is \d+"):
        data.prepare(other, **QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prepared", "train.de", "train.en", "valid.de", "valid.en"]


def test_a_directory_of_something_else_is_never_replaced(tmp_path):
    write(tmp_path, CLEAN)
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(data.DataError, match="is not a prepared dataset; choose another"):
            data.prepare(parallel_config(tmp_path), overwrite=overwrite, **QUIET)
    assert (tmp_path / "prepared/thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("stage", ["tokenizer_of_pairs", "_encode", "_replace"])
def test_failure_leaves_nothing_behind(tmp_path, monkeypatch, stage):
    write(tmp_path, CLEAN)

    def fails(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(prepare_module, stage, fails)
    with pytest.raises(RuntimeError, match="disk full"):
        data.prepare(parallel_config(tmp_path), **QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.de", "train.en", "valid.de", "valid.en"]


def test_killed_run_leaves_no_prepared_directory(tmp_path):
    program = (
        "import importlib, time; from tests.data.conftest import small_config; p = importlib.import_module('janus_jax.data.prepare')\n"
        "p.store.write_examples = lambda *_: (print('writing', flush=True), time.sleep(60))\n"
        f"p.prepare(small_config({str(tmp_path / 'demo')!r}), log=lambda _: None)"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "demo").exists()
    config = small_config(tmp_path / "demo")
    lines = []
    data.prepare(config, log=lines.append)
    assert "interrupted or running" in lines[0]
    assert len(data.Prepared.open(tmp_path / "demo", config).split("train")) == 700


def test_empty_splits_are_errors(tmp_path):
    write(tmp_path, [("", "x"), ("y", "")])
    with pytest.raises(
        data.DataError, match=r"config\.data\.train: no pair .* of 2 \(1 empty source, 1 empty target; see .*:1\)"
    ):
        data.prepare(parallel_config(tmp_path), **QUIET)
    write(tmp_path, CLEAN, [("lang " * 300, "long")])
    with pytest.raises(data.DataError, match=r"config\.data\.valid: no pair .*1 source too long.*max_source_length"):
        data.prepare(parallel_config(tmp_path), **QUIET)
    assert not (tmp_path / "prepared").exists()
    none = {"demo_sizes": (200, 20, 0), "prepared": str(tmp_path / "demo")}
    with pytest.raises(data.DataError, match=r'raise data\.demo_sizes \(200, 20, 0\), or set data\.test=""'):
        data.prepare(config_lib.resolve({"data": none, "text": {"vocab_size": 120}}), **QUIET)


def test_long_sides_are_cut_where_the_config_says_so(tmp_path):
    write(tmp_path, [*CLEAN, ("lang " * 300, "long"), ("kurz", "long " * 300)])
    said = []
    config = parallel_config(tmp_path, too_long="cut", max_source_length=40, max_target_length=30)
    data.prepare(config, log=said.append)
    prepared = data.Prepared.open(config.data.prepared, config)
    examples, eos = list(prepared.split("train").examples()), text.load(prepared.tokenizer_bytes).specials.eos
    assert len(examples) == 82
    for side, longest in (("source", 40), ("target", 30)):
        assert max(len(example[side]) for example in examples) == longest
        assert {example[side][-1] for example in examples} == {eos}
    assert "  cut 1: source too long" in "\n".join(said)
    assert "  cut 1: target too long" in "\n".join(said)
    with pytest.raises(data.DataError, match=r"data\.too_long was 'cut', is 'drop'"):
        data.prepare(parallel_config(tmp_path, max_source_length=40, max_target_length=30), **QUIET)


def test_lines_of_another_form_are_named_with_their_fix(tmp_path):
    train = tmp_path / "train.tsv"
    config = parallel_config(tmp_path, source="tsv", train=str(train), valid="")
    lines = ["\t".join(pair) for pair in CLEAN]
    train.write_text("\n".join([*lines[:7], "Satz;sentence", *lines[7:]]) + "\n")
    said = []
    data.prepare(config, log=said.append)
    fix = "each line must be source TAB target"
    assert f"warning: dropped 1: not two tab-separated sides ({fix}), first {train}:8: " in "\n".join(said)
    train.write_text("\n".join(";".join(pair) for pair in CLEAN) + "\n")
    with pytest.raises(data.DataError, match=rf"\(80 not two tab-separated sides; see .*train\.tsv:1\); {fix}$"):
        data.prepare(parallel_config(tmp_path, source="tsv", train=str(train), valid="", prepared="other"), **QUIET)


def test_impossible_batch_shows_before_writing(tmp_path, monkeypatch):
    write(tmp_path, [*CLEAN, ("Wort " * 100, "word " * 100)])
    monkeypatch.setattr(store, "write_examples", lambda *_: pytest.fail("written"))
    with pytest.raises(data.DataError, match="tokens_per_batch: 256 cannot hold 8 rows"):
        data.prepare(parallel_config(tmp_path, tokens_per_batch=256), **QUIET)


def test_a_validation_split_without_batches_shows_before_writing_and_before_training(tmp_path, monkeypatch):
    write(tmp_path, CLEAN, [*CLEAN[:4], ("bleibt " * 12, "sentence " * 12)])
    config = parallel_config(tmp_path)
    widest = data.prepare(config, **QUIET)["buckets"][-1]
    longest = max(widest["source_length"], widest["target_length"])
    narrow = with_data(config, buckets=(longest,))
    with pytest.raises(
        data.DataError, match=rf"^the batches of the valid split: config\.data\.buckets: the last bound {longest}"
    ):
        data.eval_batches(data.Prepared.open(config.data.prepared, narrow), narrow)
    with pytest.raises(data.DataError, match=rf"the batches of the valid split: .* the last bound {longest}"):
        train.train(narrow, tmp_path / "run")
    monkeypatch.setattr(store, "write_examples", lambda *_: pytest.fail("written"))
    with pytest.raises(data.DataError, match=f"config.data.buckets: the last bound {longest}"):
        data.prepare(with_data(narrow, prepared=str(tmp_path / "other")), **QUIET)


def test_what_another_preparation_wrote_in_the_meantime_stays(tmp_path, monkeypatch):
    write(tmp_path, CLEAN)
    config, other = parallel_config(tmp_path), parallel_config(tmp_path, max_source_length=100)
    finish, first = store.finish, [config]

    def comes_first(*arguments):
        if first:
            data.prepare(first.pop(), **QUIET)
        finish(*arguments)

    monkeypatch.setattr(store, "finish", comes_first)
    said = []
    data.prepare(config, log=said.append)  # the other one has the same settings
    assert "was prepared with these settings in the meantime" in said[-1]
    (tmp_path / "prepared").rename(tmp_path / "older")
    first.append(other)
    with pytest.raises(data.DataError, match=r"holds other data \(data\.max_source_length was 100, is 256\)"):
        data.prepare(config, **QUIET)
    assert data.Prepared.open(config.data.prepared, other).report["settings"]["data.max_source_length"] == 100
    assert not list(tmp_path.glob("*.partial"))


def test_a_link_to_another_disk_stays_and_a_mount_point_is_refused(tmp_path, monkeypatch):
    write(tmp_path, CLEAN)
    (tmp_path / "disk").mkdir()
    (tmp_path / "prepared").symlink_to(tmp_path / "disk/data")
    config = parallel_config(tmp_path)
    data.prepare(config, **QUIET)
    assert (tmp_path / "prepared").is_symlink()
    assert len(data.Prepared.open(tmp_path / "disk/data", config).split("train")) == len(CLEAN)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(data.DataError, match="is a mount point, which is not replaced; name a folder in it"):
        data.prepare(parallel_config(tmp_path, prepared=str(tmp_path / "mounted")), **QUIET)


def test_two_sides_of_one_name_are_refused(tmp_path):
    write(tmp_path, CLEAN)
    with pytest.raises(
        data.DataError, match=r"config\.data\.target_lang: 'de' is data\.source_lang too, .* for example src"
    ):
        data.prepare(parallel_config(tmp_path, target_lang="de"), **QUIET)


def test_absent_valid_split(tmp_path):
    write(tmp_path, CLEAN)
    config = parallel_config(tmp_path, valid="")
    data.prepare(config, **QUIET)
    prepared = data.Prepared.open(config.data.prepared, config)
    assert list(prepared.splits) == ["train"]
    with pytest.raises(data.DataError, match=r"no 'valid' split, only train; set data\.valid"):
        prepared.split("valid")


def test_opening_what_is_not_prepared(tmp_path):
    with pytest.raises(data.DataError, match=r"is not a prepared dataset .* run `python -m janus_jax\.data"):
        data.Prepared.open(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(data.DataError, match="has format 0, this version reads"):
        data.Prepared.open(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(data.DataError, match="not JSON"):
        data.Prepared.open(tmp_path)


def test_train_lines_are_spread_over_the_split(tmp_path, monkeypatch):
    write(tmp_path, CLEAN)
    config = parallel_config(tmp_path)
    seen = []
    raw = json.loads(config_lib.to_json(config))
    raw["text"]["train_lines"] = 20
    path = tmp_path / "train.tsv"
    path.write_text("".join(f"{i}\t{s}\t{t}\n" for i, (s, t) in enumerate(CLEAN)))

    def train(lines, config):
        seen.extend(lines)
        return types.SimpleNamespace(vocab_size=config.vocab_size)

    monkeypatch.setattr(tokenizer_module.text, "train", train)
    tokenizer_module.tokenizer_of_pairs(path, len(CLEAN), config_lib.resolve(raw), lambda _: None)
    assert seen[::2] == [CLEAN[i][0] for i in range(0, 80, 8)]


def config_file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from janus_jax.config import default_config\n"
        "def get_config(arg='600'):\n"
        "  c = default_config()\n"
        "  c.text.vocab_size = int(arg)\n"
        "  c.data.demo_sizes = (300, 20, 20)\n"
        f"  c.data.prepared = {str(tmp_path / 'demo')!r}\n"
        "  return c\n"
    )
    return path


def test_command(tmp_path, capsys):
    path = config_file(tmp_path)
    assert command.main([f"--config={path}:550", "--config.data.buckets=2"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert data.Prepared.open(tmp_path / "demo").report["tokenizer"]["vocab_size"] == 550
    assert command.main([f"--config={path}:550"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert command.main([f"--config={path}:560"]) == 2
    assert "text.vocab_size was 550, is 560" in capsys.readouterr().err
    assert command.main([f"--config={path}:560", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config"),
        (["--config={path}", "--config.data.bucket=2"], "bucket"),
        (["--config={path}", "--config.data.tokens_per_batch=8"], "tokens_per_batch"),
        (["--config=absent.py"], "absent.py"),
        (["--config={path}", "surplus"], "surplus"),
        (["--config={path}", "--unknown"], "unknown"),
    ],
)
def test_command_errors(tmp_path, capsys, arguments, message):
    path = config_file(tmp_path)
    assert command.main([a.format(path=path) for a in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.skipif(not MULTI30K.is_dir(), reason=f"{MULTI30K} is missing: these data are not part of the repository")
def test_real_files_and_an_existing_tokenizer(tmp_path):
    settings = config_lib.default_config()
    settings.text.model = str(MULTI30K / "deen4000.model")
    settings.data.update(
        {
            "source": "parallel", "train": str(MULTI30K / "val"), "valid": str(MULTI30K / "test_2016_flickr"),
            "test": "", "prepared": str(tmp_path / "multi30k"), "tokens_per_batch": 2048,
        }
    )  # fmt: skip
    config = config_lib.resolve(settings)
    result = data.prepare(config, **QUIET)
    assert result["splits"]["train"]["read"] == 1014
    assert result["splits"]["valid"]["kept"] == 1000
    assert result["tokenizer"]["vocab_size"] == 4002
    prepared = data.Prepared.open(tmp_path / "multi30k", config)
    assert text.load(prepared.tokenizer_bytes).vocab_size == 4002
