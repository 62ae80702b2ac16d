"""Sources: what a line is, and every way in which input can be wrong."""

import gzip
import importlib
import lzma
import typing
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from janus_jax import config as config_lib
from janus_jax.config import DataConfig
from janus_jax.data import DataError, identity, sources

prepare_module = importlib.import_module("janus_jax.data.prepare")  # the package exports a function of that name

SOURCE = ["Ein Haus", "Zwei Häuser", "Drei"]
TARGET = ["One house", "Two houses", "Three"]


class MyPairs(tfds.core.GeneratorBasedBuilder):
    """A translation dataset as TFDS makes them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(("de", "en")))

    def _split_generators(self, _):
        return {
            "train": self._generate_examples(SOURCE, TARGET),
            "validation": self._generate_examples(["Ja"], ["Yes"]),
        }

    def _generate_examples(self, source, target):
        for key, (de, en) in enumerate(zip(source, target, strict=True)):
            yield key, {"de": de, "en": en}


def config(tmp_path, source="parallel", **changes):
    names = {"train": str(tmp_path / "train"), "valid": "", "test": ""}
    return DataConfig(**{"source": source, **names, **changes})


def pairs(settings, split="train"):
    return [(n, s.decode(), t.decode()) for n, s, t in sources.open_splits(settings)[split]]


def numbered(source=SOURCE, target=TARGET):
    return [(i, *pair) for i, pair in enumerate(zip(source, target, strict=True), 1)]


def test_sources_are_those_of_the_config():
    assert set(sources.SOURCES) == set(typing.get_args(config_lib.Source))


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_plain_and_compressed_files(tmp_path, suffix, opener):
    for lang, lines in (("de", SOURCE), ("en", TARGET)):
        with opener(f"{tmp_path}/train.{lang}{suffix}", "wb") as file:
            file.write("".join(line + "\n" for line in lines).encode())
    with opener(f"{tmp_path}/train.tsv{suffix}", "wb") as file:
        file.write("".join(f"{s}\t{t}\n" for s, t in zip(SOURCE, TARGET, strict=True)).encode())
    assert pairs(config(tmp_path)) == numbered()
    tsv = config(tmp_path, "tsv", train=f"{tmp_path}/train.tsv")
    assert pairs(tsv) == numbered()
    assert pairs(config(tmp_path, "tsv", train=f"{tmp_path}/train.tsv{suffix}")) == numbered()
    assert sources.open_splits(tsv)["train"].where(2) == f"{tmp_path}/train.tsv{suffix}:2"


def test_only_newlines_end_lines(tmp_path):
    (tmp_path / "train.de").write_bytes("\ufeffa\u2028b\r\nc\rd\x0be\x85f\r\n".encode())
    (tmp_path / "train.en").write_bytes(b"x\ny")
    assert pairs(config(tmp_path)) == [(1, "a\u2028b", "x"), (2, "c\rd\x0be\x85f", "y")]


@pytest.mark.parametrize(("source", "target"), [(3, 5), (5, 3), (0, 2), (2, 0)])
def test_misaligned_files_are_named_with_their_counts(tmp_path, source, target):
    (tmp_path / "train.de").write_text("a\n" * source)
    (tmp_path / "train.en").write_text("b\n" * target)
    with pytest.raises(DataError, match=rf"train\.de has {source} lines, .*train\.en has {target}"):
        pairs(config(tmp_path))


def test_tsv_line_without_two_sides_is_marked(tmp_path):
    (tmp_path / "train").write_text("a\tb\nno tab\nc\td\te\n\tx\n")
    pairs = list(sources.open_splits(config(tmp_path, "tsv"))["train"])
    assert pairs == [(1, b"a", b"b"), (2, b"no tab", None), (3, b"c\td\te", None), (4, b"", b"x")]


@pytest.mark.parametrize("source", ["parallel", "tsv"])
def test_every_nth_pair_is_held_out_where_there_is_no_validation_split(tmp_path, source):
    lines = [(f"eins {i}", f"one {i}") for i in range(7)]
    if source == "tsv":
        (tmp_path / "train").write_text("".join(f"{a}\t{b}\n" for a, b in lines))
    else:
        for side, language in enumerate(("de", "en")):
            (tmp_path / f"train.{language}").write_text("".join(f"{pair[side]}\n" for pair in lines))
    opened = sources.open_splits(config(tmp_path, source, hold_out=3))
    assert list(opened) == ["valid", "train"]
    assert [number for number, *_ in opened["valid"]] == [3, 6]
    assert [number for number, *_ in opened["train"]] == [1, 2, 4, 5, 7]
    assert next(iter(opened["valid"]))[1:] == (b"eins 2", b"one 2")
    (tmp_path / "valid").write_text("null\tzero\n")
    if source == "tsv":
        named = sources.open_splits(config(tmp_path, source, hold_out=3, valid=str(tmp_path / "valid")))
        assert len(list(named["train"])) == 7


def test_hold_out_is_refused_where_splits_are_no_files():
    with pytest.raises(DataError, match=r"^config.data.hold_out: 3, but data.source=demo has a validation split"):
        sources.open_splits(DataConfig(source="demo", hold_out=3))


def test_marks_of_glge_are_changed_as_the_benchmark_does(tmp_path):
    (tmp_path / "train.src").write_text("one . <S_SEP> two ##fold .\nc\n")
    (tmp_path / "train.tgt").write_text("first play ##ing <S_SEP> second\nd\n")
    split = sources.open_splits(config(tmp_path, "glge"))["train"]
    assert list(split) == [(1, b"one .  twofold .", b"first playing [X_SEP] second"), (2, b"c", b"d")]
    assert split.where(2) == f"{tmp_path}/train.src:2"
    # In gigaword # is a digit.
    (tmp_path / "digits.src").write_text("killed ## people in ##th week\n")
    (tmp_path / "digits.tgt").write_text("## killed\n")
    split = sources.open_splits(config(tmp_path, "glge", train=str(tmp_path / "digits"), glge_pieces=False))["train"]
    assert list(split) == [(1, b"killed ## people in ##th week", b"## killed")]
    (tmp_path / "test.src").write_text("one\n")
    with pytest.raises(
        DataError, match=r'test\.src is there, .*test\.tgt is not: .* say config\.data\.test="", and decode'
    ):
        sources.open_splits(config(tmp_path, "glge", test=f"{tmp_path}/test"))
    (tmp_path / "train.tgt").write_text("d\n")
    with pytest.raises(DataError, match=r"train\.src has 2 lines, .*train\.tgt has 1"):
        pairs(config(tmp_path, "glge"))


def test_missing_files_and_splits(tmp_path):
    (tmp_path / "train.de").write_text("a\n")
    with pytest.raises(DataError, match=r"config\.data\.train: no file .*train\.en' \(nor with \.gz or \.xz\)"):
        sources.open_splits(config(tmp_path))
    (tmp_path / "train.en").write_text("a\n")
    with pytest.raises(DataError, match=r"config\.data\.test: no file"):
        sources.open_splits(config(tmp_path, test="absent"))
    with pytest.raises(DataError, match=r"config\.data\.train: name the training split"):
        sources.open_splits(config(tmp_path, train=""))
    assert list(sources.open_splits(config(tmp_path))) == ["train"]


def test_broken_archive_is_named_with_the_line(tmp_path):
    whole = lzma.compress(b"line\n" * 100_000)
    (tmp_path / "train.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train\.xz:\d+: cannot read on"):
        list(sources.open_splits(config(tmp_path, "tsv"))["train"])
    spoilt = bytearray(gzip.compress(bytes(range(256)) * 40))
    spoilt[18] ^= 0xFF  # in the compressed data
    (tmp_path / "spoilt.gz").write_bytes(spoilt)
    with pytest.raises(zlib.error):
        gzip.decompress(spoilt)
    with pytest.raises(DataError, match=r"spoilt\.gz:\d+: cannot read on"):
        list(sources.read_lines(tmp_path / "spoilt.gz"))
    (tmp_path / "other.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"other\.gz:1: cannot read on"):
        list(sources.read_lines(tmp_path / "other.gz"))


def test_demo_source():
    settings = DataConfig(demo_sizes=(20, 5, 0), test="")
    splits = sources.open_splits(settings)
    assert {name: len(list(split)) for name, split in splits.items()} == {"train": 20, "valid": 5}
    assert splits["valid"].where(3) == "demo valid:3"


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    MyPairs(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def test_tfds_dataset_by_name(tmp_path, tfds_directory):
    settings = config(
        tmp_path, "tfds", tfds_name="my_pairs", tfds_data_dir=str(tfds_directory), train="train", valid="validation"
    )
    splits = sources.open_splits(settings)
    pairs = [(_text(s), _text(t)) for _, s, t in splits["train"]]
    assert sorted(pairs) == sorted(zip(SOURCE, TARGET, strict=True))
    assert len(list(splits["valid"])) == 1
    assert splits["train"].where(2) == "my_pairs train[1]"
    half = dict(vars(settings), train="train[:2]")
    assert len(list(sources.open_splits(DataConfig(**half))["train"])) == 2


def test_a_new_version_of_a_tfds_dataset_is_other_data(tmp_path, tfds_directory, monkeypatch):
    changes = {"train": "train", "valid": "", "test": "", "tfds_data_dir": str(tfds_directory)}
    settings = config_lib.resolve({"data": {"source": "tfds", "tfds_name": "my_pairs", **changes}})
    splits = sources.open_splits(settings.data)
    inputs = prepare_module._inputs(settings, splits)
    report = {**prepare_module._about(settings, splits, inputs), "splits": {"train": {}}}
    assert identity.preparation_changes(report, settings, splits, inputs, tmp_path) == ""
    monkeypatch.setattr(MyPairs, "VERSION", tfds.core.Version("1.1.0"))
    MyPairs(data_dir=tfds_directory, file_format="array_record").download_and_prepare()
    splits = sources.open_splits(settings.data)
    inputs = prepare_module._inputs(settings, splits)
    changes = identity.preparation_changes(report, settings, splits, inputs, tmp_path)
    assert changes == "the dataset was 'tfds my_pairs/1.0.0', is 'tfds my_pairs/1.1.0'"


def _text(side):
    return side.decode() if isinstance(side, bytes) else str(side)


def test_tfds_errors(tmp_path, tfds_directory):
    def attempt(**changes):
        settings = {"tfds_name": "my_pairs", "tfds_data_dir": str(tfds_directory), "train": "train", **changes}
        return sources.open_splits(config(tmp_path, "tfds", **settings))

    with pytest.raises(DataError, match=r"config\.data\.valid: .* no split 'dev'; it has train, validation"):
        attempt(valid="dev")
    with pytest.raises(DataError, match="has no 'fr'; it holds de, en"):
        attempt(source_lang="fr")
    with pytest.raises(DataError, match=r"knows no dataset 'no_such_pairs', nor is it in .*; https:"):
        attempt(tfds_name="no_such_pairs")
    with pytest.raises(
        DataError, match=r"knows no dataset 'ted_hrlr_translat', .* did you mean 'ted_hrlr_translate'\?"
    ):
        attempt(tfds_name="ted_hrlr_translat")
    with pytest.raises(DataError, match="cannot open 'two words'"):
        attempt(tfds_name="two words")
    with pytest.raises(DataError, match=r"is not in .*; add --download"):
        attempt(tfds_data_dir=str(tmp_path / "empty"))
    assert not (tmp_path / "empty" / "my_pairs").exists()  # nothing was written or fetched


def test_tfds_download_prepares_the_dataset(tmp_path):
    settings = config(tmp_path, "tfds", tfds_name="my_pairs", tfds_data_dir=str(tmp_path / "new"), train="train")
    assert len(list(sources.open_splits(settings, download=True)["train"])) == 3
    assert len(list(sources.open_splits(settings)["train"])) == 3


def test_wmt_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    settings = config(
        tmp_path, "tfds", tfds_name="wmt16_translate/ro-en", tfds_data_dir=str(tmp_path / "none"), train="train"
    )

    def fails(*_, **__):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", fails)
    with pytest.raises(DataError, match="pip install tensorflow"):
        sources.open_splits(settings)


def test_tfds_examples_are_read_in_chunks(tmp_path):
    many = [np.base_repr(i, 36) for i in range(2500)]

    class ManyPairs(MyPairs, skip_registration=True):
        """More examples than one chunk."""

        name = "many_pairs"

        def _split_generators(self, _):
            return {"train": self._generate_examples(many, many)}

    ManyPairs(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    settings = config(tmp_path, "tfds", tfds_name="many_pairs", tfds_data_dir=str(tmp_path), train="train")
    pairs = list(sources.open_splits(settings)["train"])
    assert [n for n, *_ in pairs] == list(range(1, 2501))
    assert {_text(s) for _, s, _ in pairs} == set(many)
