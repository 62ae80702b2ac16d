"""The sample of the built-in corpus in the files that an experiment names."""

import pytest

from janus_jax.config import DataConfig
from janus_jax.data import DataError
from janus_jax.data.__main__ import main
from janus_jax.data.sample import write_sample
from janus_jax.data.sources import open_splits


def settings(folder, source, **changes):
    ending = ".tsv" if source == "tsv" else ""
    names = {split: str(folder / f"my/{split}{ending}") for split in ("train", "valid", "test")}
    fields = {"source": source, "source_lang": "es", "target_lang": "fi", "demo_sizes": (30, 5, 4), **names, **changes}
    return DataConfig(**fields)


def pairs(config):
    def decoded(side):
        return side.decode() if isinstance(side, bytes) else side

    return {
        split: [(decoded(source), decoded(target)) for _, source, target in pairs]
        for split, pairs in open_splits(config).items()
    }


@pytest.mark.parametrize("source", ["parallel", "tsv"])
def test_a_sample_is_the_built_in_corpus(tmp_path, source):
    config = settings(tmp_path, source)
    files = write_sample(config)
    assert len(files) == (6 if source == "parallel" else 3)
    assert pairs(config) == pairs(settings(tmp_path, "demo"))


def test_a_split_without_a_name_has_no_file(tmp_path):
    write_sample(settings(tmp_path, "parallel", test=""))
    assert {path.name for path in (tmp_path / "my").iterdir()} == {"train.es", "train.fi", "valid.es", "valid.fi"}


def test_a_sample_replaces_nothing(tmp_path):
    config = settings(tmp_path, "parallel")
    (tmp_path / "my").mkdir()
    (tmp_path / "my/valid.fi").write_text("oma\n")
    with pytest.raises(DataError, match=r"valid\.fi is there already.*--write_sample"):
        write_sample(config)
    assert [path.name for path in (tmp_path / "my").iterdir()] == ["valid.fi"]
    assert (tmp_path / "my/valid.fi").read_text() == "oma\n"


def test_only_pairs_in_files_have_a_sample(tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.source=text"):
        write_sample(settings(tmp_path, "text"))


def test_the_command_writes_the_sample_and_prepares_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from janus_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.data.update(dict(source='tsv', train='t.tsv', valid='v.tsv', test='', demo_sizes=(200, 9, 0)))\n"
        "    config.text.vocab_size = 300\n    config.text.byte_fallback = False\n    return config\n"
    )
    command = ["--config=mine.py", "--config.data.prepared=prepared", "--write_sample"]
    assert main(command) == 0
    assert (tmp_path / "prepared/report.json").is_file()
    assert main(command) == 2
    assert "t.tsv is there already" in capsys.readouterr().err


def test_a_tsv_given_as_a_prefix_says_so(tmp_path):
    (tmp_path / "mine.tsv").write_text("a\tb\n")
    config = DataConfig(source="parallel", train=str(tmp_path / "mine.tsv"), valid="", test="")
    with pytest.raises(DataError, match=r"data\.source=tsv"):
        open_splits(config)


def test_a_missing_validation_split_may_be_left_out(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\n")
    config = DataConfig(source="tsv", train=str(tmp_path / "train.tsv"), valid="absent.tsv", test="")
    with pytest.raises(DataError, match=r'config\.data\.valid="" if there is none'):
        open_splits(config)
