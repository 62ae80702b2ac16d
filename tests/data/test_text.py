"""Plain text to blocks, and to batches for denoising."""

import dataclasses
import gzip
import itertools
import json

import numpy as np
import pytest

from janus_jax import config as config_lib
from janus_jax import data, text
from janus_jax.checkpoint import CheckpointError
from janus_jax.data import __main__ as command
from janus_jax.data import blocks, clean, prepare_text
from janus_jax.data.tokenizer import tokenizer_of_lines

WORDS = (
    "the old house by river stood empty until one spring morning when two painters came to look at its windows".split()
)


def document(number):
    """A few sentences, different ones for each number."""
    rng = np.random.default_rng(number)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(3, 12))).capitalize() + "." for _ in range(rng.integers(1, 6))]
    return " ".join(sentences)


DOCUMENTS = [document(i) for i in range(400)]


def settings(folder, **changes):
    config = config_lib.default_config()
    config.text.model_type, config.text.vocab_size = "byte_bpe", 330
    config.data.update(
        {
            "source": "text", "train": str(folder / "*.txt.gz"), "valid": "", "test": "", "hold_out": 20, "buckets": 1,
            "prepared": str(folder / "prepared"), "max_source_length": 48, "max_target_length": 48, "tokens_per_batch": 512,
            **changes,
        }
    )  # fmt: skip
    config.train.accumulation = 2
    return config_lib.resolve(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of documents."""
    folder = tmp_path_factory.mktemp("text")
    for name, part in (("a", DOCUMENTS[:250]), ("b", [*DOCUMENTS[250:], "", "bad \x01 line"])):
        with gzip.open(folder / f"{name}.txt.gz", "wt") as file:
            file.write("".join(f"{line}\n" for line in part))
    return folder


@pytest.fixture(scope="module")
def prepared(folder):
    config = settings(folder)
    data.prepare(config, log=lambda _: None)
    return data.Prepared.open(config.data.prepared, config)


@pytest.mark.parametrize(
    ("document", "sentences"),
    [
        ("One. Two (2.5)! and so on.", ["One.", " Two (2.5)! and so on."]),
        ('He said "Stop." Then he left?  Yes', ['He said "Stop."', " Then he left?", "  Yes"]),
        ("Version 2.5 is out", ["Version 2.5 is out"]),
        ("今日は。明日は。", ["今日は。", "明日は。"]),
        ("   ", []),
    ],
)
def test_sentences(document, sentences):
    assert blocks.sentences_of(document) == sentences
    assert "".join(sentences) == document or not sentences


def test_blocks_hold_whole_sentences_in_order(prepared):
    tokenizer = text.load(prepared.tokenizer_bytes)
    packed = list(blocks.pack(DOCUMENTS, tokenizer, 48))
    assert max(len(block["target"]) for block in packed) <= 48
    rebuilt = []
    for block in packed:
        assert block["target"][0] == 0
        assert block["target"][-1] == 2
        assert block["sentences"][0] == 1
        rebuilt += [tokenizer.decode(ids) for ids in np.split(block["target"][:-1], block["sentences"])[1:]]
    expected = [sentence for one in DOCUMENTS for sentence in blocks.sentences_of(one)]
    assert "".join(rebuilt) == "".join(expected)
    # Only what is longer than a block is cut.
    assert len(rebuilt) - len(expected) <= sum(len(tokenizer.encode(sentence)) > 46 for sentence in expected) * 3
    # A block is not closed while the next sentence would fit.
    for block, following in itertools.pairwise(packed):
        first = np.split(following["target"][:-1], following["sentences"])[1]
        assert len(block["target"]) + len(first) > 48


def test_sentences_without_a_space_between_them_get_none(tmp_path):
    """A SentencePiece model puts a space before each text that it encodes."""
    (tmp_path / "lines.txt").write_text("今日は。明日は。\nHere it is. There too.\n" * 50)
    config = settings(tmp_path, train=str(tmp_path / "lines.txt"), hold_out=0)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, model_type="unigram", vocab_size=300))
    tokenizer = tokenizer_of_lines((tmp_path / "lines.txt").read_text().splitlines(), config, lambda _: None)
    documents = ["今日は。明日は。今日は。", "Here it is. There too."]
    packed = list(blocks.pack(documents, tokenizer, 48))
    assert [tokenizer.decode(block["target"]) for block in packed] == [" ".join(documents)]
    assert len(packed[0]["sentences"]) == 5


def test_a_sentence_longer_than_a_block_is_cut(prepared):
    tokenizer = text.load(prepared.tokenizer_bytes)
    long = " ".join(WORDS * 20)
    packed = list(blocks.pack([long], tokenizer, 48))
    assert [len(block["target"]) for block in packed[:-1]] == [48] * (len(packed) - 1)
    assert "".join(tokenizer.decode(block["target"]) for block in packed) == long


def test_held_out_documents_are_not_trained_on(prepared):
    tokenizer = text.load(prepared.tokenizer_bytes)
    texts = {
        name: "".join(tokenizer.decode(row["target"]) for row in prepared.split(name).examples())
        for name in ("train", "valid")
    }
    assert texts["valid"] == "".join(DOCUMENTS[19::20])
    assert texts["train"] == "".join(one for i, one in enumerate(DOCUMENTS) if (i + 1) % 20)
    report = prepared.report["splits"]
    assert (report["train"]["kept"], report["valid"]["kept"]) == (380, 20)
    [(reason, entry)] = report["train"]["dropped"].items()
    assert reason == "control character"
    assert entry["examples"][0]["where"].endswith("b.txt.gz:152")


def test_any_number_of_processes_writes_the_same(folder, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_text, "_TASK", 8000)
    results, contents = [], set()
    for processes in (1, 2):
        config = settings(folder, prepared=str(tmp_path / str(processes)))
        data.prepare(config, log=lambda _: None, processes=processes)
        prepared = data.Prepared.open(config.data.prepared, config)
        results.append([row["target"].tolist() for row in prepared.split("train").examples()])
        contents.add(prepared.contents)
        shards = sorted(p.name for p in (tmp_path / str(processes) / "janus_text/1.0.0").glob("*train*"))
        assert len(shards) > 2
        assert shards[0].endswith(f"array_record-00000-of-{len(shards):05d}")
    assert results[0] == results[1]
    assert len(contents) == 1
    # A shard ends a block: documents stay in order.
    tokenizer = text.load(prepared.tokenizer_bytes)
    assert "".join(map(tokenizer.decode, results[0])) == "".join(d for i, d in enumerate(DOCUMENTS) if (i + 1) % 20)


def test_training_batches_are_noised_blocks(prepared, folder):
    config = settings(folder)
    batches = data.TrainBatches(prepared, config)
    batch = batches.batch_at(0)
    split = prepared.split("train")
    tokenizer = text.load(prepared.tokenizer_bytes)
    real = batch.example_id >= 0
    assert batch.source.shape == batch.target.shape
    np.testing.assert_array_equal((batch.target[real] != 1).sum(axis=-1), split.target_lengths[batch.example_id[real]])
    assert (batch.masked_count[real] >= 1).all()
    assert (batch.source == tokenizer.specials.mask).any()
    assert not (batch.target == tokenizer.specials.mask).any()
    # The same for every epoch but in another form, the same for any number of processes.
    parts = [data.TrainBatches(prepared, config, i, 2).batch_at(0) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([part.source for part in parts], axis=1), batch.source)
    again = data.TrainBatches(prepared, config).batch_at(batches.steps_per_epoch)
    assert not np.array_equal(again.source, batch.source)
    evaluation = [list(data.eval_batches(prepared, config)) for _ in range(2)]
    np.testing.assert_array_equal(evaluation[0][0].source, evaluation[1][0].source)


def test_large_splits_are_read_from_disk_at_random(prepared, folder, monkeypatch):
    config = settings(folder)
    before = data.TrainBatches(prepared, config).batch_at(3)
    monkeypatch.setattr(data.store, "_IN_MEMORY_TOKENS", 10)
    fresh = data.Prepared.open(config.data.prepared, config)
    after = data.TrainBatches(fresh, config).batch_at(3)
    assert fresh.split("train")._flat is None
    for name, array in vars(before).items():
        np.testing.assert_array_equal(array, getattr(after, name))


def test_a_run_needs_no_settings_that_have_no_effect_on_text(prepared, folder):
    # Only SentencePiece reads these two; an older version recorded them for each kind.
    other = settings(folder)
    other = dataclasses.replace(
        other, text=dataclasses.replace(other.text, character_coverage=1.0, byte_fallback=False)
    )
    path = prepared.directory / "report.json"
    report = json.loads(path.read_text())
    assert not {"text.character_coverage", "text.byte_fallback"} & set(report["settings"])
    for more in ({}, {"text.character_coverage": 0.9, "text.byte_fallback": True}):
        path.write_text(json.dumps({**report, "settings": {**report["settings"], **more}}))
        data.Prepared.open(prepared.directory, other)
    path.write_text(json.dumps(report))
    # The length of a block is taken over, and so is the room for its source.
    for overridden in (frozenset(), frozenset({"data.max_source_length"})):
        config = config_lib.default_config()
        config.data.update({"prepared": str(prepared.directory), "max_source_length": 32, "max_target_length": 32})
        note = data.adopt(config, overridden)
        if overridden:
            with pytest.raises(config_lib.ConfigError, match=r"data\.max_source_length: 32, but noise may leave"):
                config_lib.resolve(config)
        else:
            assert "data.max_source_length 48 instead of 32" in note
            data.Prepared.open(prepared.directory, config_lib.resolve(config))


def test_a_sample_for_the_tokenizer_is_spread_evenly(folder):
    source = data.sources.open_splits(settings(folder, hold_out=0).data)["train"]
    chosen = prepare_text.sample_lines(source, 60)
    assert chosen == DOCUMENTS[::8]


def test_command(folder, tmp_path, capsys):
    path = tmp_path / "experiment.py"
    raw = json.loads(config_lib.to_json(settings(folder, prepared=str(tmp_path / "out"))))
    path.write_text(
        "from janus_jax.config import default_config\n"
        "def get_config():\n"
        f"  c = default_config(); c.data.update({raw['data']!r}); c.text.update({raw['text']!r}); return c\n"
    )
    assert command.main([f"--config={path}", "--processes=1"]) == 0
    assert "kept 380 of 381 documents" in capsys.readouterr().out
    assert command.main([f"--config={path}", "--config.data.train=absent/*.txt", "--config.data.prepared=x"]) == 2
    assert "absent/*.txt" in capsys.readouterr().err


def test_places_are_those_of_the_right_file_and_blank_lines_are_no_documents(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(b"good text\n\n\xff bad\n\nmore text\n")
    config = settings(tmp_path, train=str(tmp_path / "*.txt"), hold_out=2)
    opened = data.sources.open_splits(config.data)
    assert list(opened) == ["valid", "train"]
    stats = clean.FilterStats()
    documents = [text for part in opened.values() for _, text in clean.clean_documents(part, stats)]
    # Counted without blank lines: good, bad, more; good, bad, more; ... Every second is held out.
    assert sorted(documents) == ["good text"] * 3 + ["more text"] * 3
    assert stats.read == 9
    places = [example["where"] for example in stats.dropped["not UTF-8"]["examples"]]
    assert sorted(places) == [str(tmp_path / f"{name}.txt") + ":3" for name in "abc"]


def test_a_folder_is_no_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "corpus/more").mkdir(parents=True)
    (tmp_path / "corpus/a.txt").write_text("good text\n" * 9)
    opened = data.sources.open_splits(settings(tmp_path, train="corpus/*", test="test", hold_out=3).data)
    assert list(opened) == ["valid", "train"]
    assert list(opened["train"].inputs) == ["corpus/a.txt"]
    with pytest.raises(data.DataError, match=r"config\.data\.train: no file 'corpus/m\*'"):
        data.sources.open_splits(settings(tmp_path, train="corpus/m*").data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold_out": 10_000}, r"config\.data\.hold_out: 10000, but the text has fewer documents"),
        ({"tokens_per_batch": 128}, "tokens_per_batch: 128 cannot hold 8 rows"),
    ],
)
def test_an_impossible_setting_is_refused_before_the_training_text_is_packed(
    folder, tmp_path, monkeypatch, changes, message
):
    packed = []
    monkeypatch.setattr(prepare_text, "_pack", packed.append)
    monkeypatch.setattr(text, "train", lambda *_: pytest.fail("trained a tokenizer"))
    with pytest.raises(data.DataError, match=message):
        data.prepare(settings(folder, prepared=str(tmp_path / "out"), **changes), log=lambda _: None)
    assert not packed
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_nowhere_is_named_before_the_text_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data.sources, "open_splits", lambda *_, **__: pytest.fail("opened the text"))
    config = dataclasses.replace(settings(folder, prepared=str(tmp_path / "out")), init_from="runs/nothing")
    with pytest.raises(
        data.DataError, match=r"config\.init_from: no such file or directory: runs/nothing, .* relative to "
    ):
        data.prepare(config, log=lambda _: None)


def test_init_from_must_be_a_checkpoint(folder, tmp_path, capsys):
    config = dataclasses.replace(settings(folder, prepared=str(tmp_path / "out")), init_from=str(folder))
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        data.prepare(config, log=lambda _: None)
    with pytest.raises(config_lib.ConfigError, match=r"noise_ratio: 0\.0 must be above 0"):
        settings(folder, noise_ratio=0.0)
