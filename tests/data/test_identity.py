"""A prepared dataset is its content: it may be moved, its text may lie elsewhere; other content is noticed."""

import dataclasses
import hashlib
import json
import shutil

import ml_collections
import pytest

from janus_jax import command_line, data, text
from janus_jax import config as config_lib
from janus_jax.data import DataError, identity
from janus_jax.data import __main__ as command
from tests.data.test_prepare import CLEAN, QUIET, parallel_config, write


def changed(config, **changes):
    """The config with some settings replaced, "group__key" for config.group.key."""
    raw = json.loads(config_lib.to_json(config))
    for name, value in changes.items():
        *groups, key = name.split("__")
        group = raw
        for part in groups:
            group = group[part]
        group[key] = value
    return config_lib.resolve(raw)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with text, the set that was prepared of it, and the config."""
    folder = tmp_path_factory.mktemp("original")
    write(folder, CLEAN)
    config = parallel_config(folder)
    data.prepare(config, **QUIET)
    return folder, config


@pytest.fixture
def moved(original, tmp_path):
    """A copy of the folder, and the config with the paths in it."""
    folder, config = original
    shutil.copytree(folder, tmp_path / "copy")
    paths = {f"data__{name}": str(tmp_path / "copy" / name) for name in ("train", "valid", "prepared")}
    return tmp_path / "copy", changed(config, **paths)


def edit(folder, change, name="report.json"):
    path = folder / "prepared" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def older(folder):
    """As the version before wrote it."""

    def change(report):
        del report["content"], report["files"], report["examples"]

    edit(folder, change)


@pytest.mark.parametrize("age", ["new", "older"])
def test_a_moved_set_opens_with_its_text_elsewhere_or_gone(moved, age):
    folder, config = moved
    if age == "older":
        older(folder)
    assert len(data.Prepared.open(config.data.prepared, config).split("train")) == 80
    for name in ("train.de", "train.en", "valid.de", "valid.en"):
        (folder / name).unlink()
    assert len(data.Prepared.open(config.data.prepared, config).split("train")) == 80


@pytest.mark.parametrize("age", ["new", "older"])
def test_other_text_at_another_place_is_refused(moved, age):
    folder, config = moved
    if age == "older":
        older(folder)
    (folder / "train.en").write_text((folder / "train.en").read_text() + "one more\n")
    with pytest.raises(DataError, match=r"data\.train was '.*', is '.*copy/train', which holds other text; run"):
        data.Prepared.open(config.data.prepared, config)


def test_text_of_the_same_size_at_another_place_is_refused(moved):
    folder, config = moved
    (folder / "train.en").write_text((folder / "train.en").read_text().replace("stay", "play"))
    with pytest.raises(DataError, match="which holds other text"):
        data.Prepared.open(config.data.prepared, config)
    with pytest.raises(DataError, match=r"data\.train was '.*', is '.*', with other text\); remove"):
        data.prepare(config, **QUIET)


def test_preparing_a_moved_set_again_does_nothing(moved):
    _, config = moved
    lines = []
    data.prepare(config, log=lines.append)
    assert "nothing to do" in lines[0]
    with pytest.raises(DataError, match=r"data\.valid was '.*', is ''"):
        data.prepare(changed(config, data__valid=""), **QUIET)


def test_a_validation_split_that_is_only_in_one_of_both_is_refused(moved):
    folder, config = moved
    with pytest.raises(DataError, match=r"data\.valid was '.*/valid', is ''"):
        data.Prepared.open(config.data.prepared, changed(config, data__valid=""))
    other = changed(config, data__valid="", data__prepared=str(folder / "other"))
    data.prepare(other, **QUIET)
    with pytest.raises(DataError, match=r"data\.valid was '', is '.*/valid'"):
        data.Prepared.open(folder / "other", config)
    data.Prepared.open(config.data.prepared, changed(config, data__test="my/test"))  # training reads no test split


def test_a_tokenizer_is_compared_by_its_content(moved):
    folder, config = moved
    tokenizer, other = folder / "elsewhere.model", folder / "other.model"
    shutil.copy(folder / "prepared/tokenizer.model", tokenizer)
    other.write_bytes(text.train([pair[0][::-1] for pair in CLEAN], config.text).to_bytes())
    for name in (tokenizer, folder / "absent.model"):
        data.Prepared.open(config.data.prepared, changed(config, text__model=str(name)))
    with pytest.raises(DataError, match=r"text\.model was '', is '.*other\.model', another tokenizer"):
        data.Prepared.open(config.data.prepared, changed(config, text__model=str(other)))


def test_a_tokenizer_that_changed_in_place_is_noticed_when_data_are_prepared_again(moved):
    folder, config = moved
    path = folder / "dict.txt"
    words = sorted({word for pair in CLEAN for side in pair for word in side.split()})
    config = changed(config, text__model=str(path), data__prepared=str(folder / "words"))
    path.write_text("".join(f"{word} 1\n" for word in words))
    data.prepare(config, **QUIET)
    path.write_text("".join(f"{word} 1\n" for word in reversed(words)))  # a file of the same size
    with pytest.raises(DataError, match=r"text\.model '.*dict\.txt' is another tokenizer now\); remove"):
        data.prepare(config, **QUIET)
    data.Prepared.open(config.data.prepared, config)  # training reads the tokenizer of the dataset
    data.prepare(config, overwrite=True, **QUIET)
    assert (folder / "words/tokenizer.model").read_bytes().endswith(path.read_bytes())
    lines = []
    data.prepare(config, overwrite=True, log=lines.append)
    assert "nothing to do" in lines[0]


def test_generated_targets_are_other_data(moved):
    folder, config = moved
    raw = data.Prepared.open(config.data.prepared)
    data.retarget(raw, folder / "distilled", [[7]] * 80, {"checkpoint": "teacher"})
    distilled = changed(config, data__prepared=str(folder / "distilled"))
    with pytest.raises(DataError, match=r"holds other data \(its training targets were generated by a model\); remove"):
        data.prepare(distilled, **QUIET)
    data.prepare(distilled, overwrite=True, **QUIET)
    again = data.Prepared.open(folder / "distilled", distilled)
    assert "distilled" not in again.report
    assert again.contents == raw.contents


def test_contents_are_the_examples_that_training_reads(moved):
    folder, config = moved
    prepared = data.Prepared.open(config.data.prepared, config)
    targets = [row["target"][1:-1].tolist() for row in prepared.split("train").examples()]
    targets[40][0] = 5 if targets[40][0] != 5 else 6
    data.retarget(prepared, folder / "others", targets, {})
    others = data.Prepared.open(folder / "others")
    for side in ("source", "target"):
        assert (others.split("train").lengths[side] == prepared.split("train").lengths[side]).all()
    assert others.contents != prepared.contents
    with_test = changed(config, data__test=config.data.valid, data__prepared=str(folder / "with_test"))
    data.prepare(with_test, **QUIET)
    opened = data.Prepared.open(with_test.data.prepared, with_test)
    assert list(opened.splits) == ["train", "valid", "test"]
    assert opened.contents == prepared.contents
    few = changed(config, data__valid=str(folder / "few"), data__prepared=str(folder / "with_few"))
    for side in ("de", "en"):
        (folder / f"few.{side}").write_text("".join((folder / f"valid.{side}").open().readlines()[:-1]))
    data.prepare(few, **QUIET)
    assert data.Prepared.open(few.data.prepared, few).contents != prepared.contents


def test_contents_of_an_older_set_stay_what_they_were(moved):
    folder, config = moved
    older(folder)
    prepared = data.Prepared.open(config.data.prepared, config)
    digest = hashlib.sha256((folder / "prepared/tokenizer.model").read_bytes())
    for split in ("train", "valid"):
        for side in ("source", "target"):
            lengths = [len(row[side]) for row in prepared.split(split).examples()]
            numbers = b"".join(length.to_bytes(4, "little") for length in lengths)
            digest.update(f"{split} {side} {len(lengths)} ".encode() + numbers)
    assert prepared.contents == digest.hexdigest()[:12]


def test_a_file_in_the_place_of_another_is_noticed(moved):
    folder, config = moved
    path = folder / "prepared/tokenizer.model"
    other = text.train([pair[0][::-1] for pair in CLEAN], changed(config, text__vocab_size=290).text)
    path.write_bytes(text.train([f"{a} {b}"[::-1] for a, b in CLEAN], config.text).to_bytes())
    assert text.load(path.read_bytes()).vocab_size == 298 != other.vocab_size
    with pytest.raises(DataError, match=rf"{path}: not the file that was prepared"):
        data.Prepared.open(config.data.prepared, config)
    older(folder)  # without a checksum the size counts
    path.write_bytes(other.to_bytes())
    with pytest.raises(DataError, match=rf"{path}: 290 tokens, but 298 in report.json"):
        data.Prepared.open(config.data.prepared, config)


def test_changed_validation_text_is_noticed(moved):
    folder, config = moved
    path = folder / "prepared/text/valid.en"
    path.write_text(path.read_text().replace("stay", "play"))
    with pytest.raises(DataError, match=rf"{path}: not the file that was prepared"):
        data.Prepared.open(config.data.prepared, config)


def test_settings_of_other_versions(moved):
    folder, config = moved
    edit(folder, lambda report: report["files"].pop("config.json"))
    edit(folder, lambda raw: raw["data"].update({"later": 0}) or raw.update({"group": {"later": 1}}), "config.json")
    edit(folder, lambda report: report["settings"].pop("data.max_length_ratio"))
    edit(folder, lambda report: report["settings"].update({"data.later": 0}))
    data.Prepared.open(config.data.prepared, config)
    with pytest.raises(DataError, match=r"data\.max_length_ratio was 0\.0, is 3\.0"):
        data.Prepared.open(config.data.prepared, changed(config, data__max_length_ratio=3.0))
    edit(folder, lambda report: report["settings"].update({"data.later": "x"}))
    with pytest.raises(DataError, match=r"data\.later was 'x', which this version does not know"):
        data.Prepared.open(config.data.prepared, config)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format": 1}', b'{"format": []}',
        b'{"format": 1, "settings": []}', b'{"format": 1, "settings": {}, "inputs": {}, "splits": {}, "tokenizer": {}, "fingerprint": ""}',
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_report_is_named(moved, content):
    folder, config = moved
    (folder / "prepared/report.json").write_bytes(content)
    for start in (lambda: data.Prepared.open(config.data.prepared, config), lambda: data.prepare(config, **QUIET)):
        with pytest.raises(DataError, match=r"prepared.* (remove|prepare)"):
            start()


@pytest.fixture
def experiment(tmp_path):
    """An experiment file, and how a command reads it with the settings of the prepared data."""
    own = tmp_path / "experiment.py"
    own.write_text(
        "from janus_jax.config import default_config\n"
        "def get_config():\n"
        "  config = default_config()\n"
        "  config.data.source = 'tfds'\n"  # without tfds_name this is an error
        "  config.data.max_source_length = 64\n"
        "  return config\n"
    )

    def read(*argv, file=own):
        configs = []
        arguments = {"module": "m", "doc": "d", "define": lambda _: None, "adjust": data.adopt}
        status = command_line.run(
            [f"--config={file}", *argv], **arguments, body=lambda config, _: configs.append(config) or 0
        )
        return configs[0] if status == 0 else None

    return read


def test_a_run_takes_over_what_shaped_its_data(moved, experiment, capsys):
    _, original_config = moved
    directory = original_config.data.prepared
    config = experiment(f"--config.data.prepared={directory}")
    assert (config.data.source, config.data.max_source_length, config.text.vocab_size) == ("parallel", 256, 298)
    note = capsys.readouterr().err
    assert note.startswith(
        f"training follows {directory}: text.vocab_size 298 instead of 8000, data.source 'parallel' instead of 'tfds'"
    )
    assert note.count("\n") == 1
    data.Prepared.open(directory, config)
    assert experiment() is None  # no such folder
    assert "config.data.tfds_name: name the TFDS dataset" in capsys.readouterr().err


@pytest.mark.parametrize("content", [{}, {"text": 3}, {"data": {"prepared": 3}}, {"data": {}}])
def test_a_config_of_another_shape_is_left_to_its_check(moved, content):
    config = ml_collections.ConfigDict(content)
    if not content:
        config.data = {"prepared": moved[1].data.prepared}
        assert "text.vocab_size 298 instead of 8000" in data.adopt(config, frozenset())
        assert config.text.vocab_size == 298
    else:
        assert data.adopt(config, frozenset()) == ""


def test_what_the_command_line_says_is_compared(moved, experiment):
    directory = moved[1].data.prepared
    config = experiment(f"--config.data.prepared={directory}", "--config.text.vocab_size=500")
    with pytest.raises(DataError, match=r"text\.vocab_size was 298, is 500; run"):
        data.Prepared.open(directory, config)
    config = experiment(f"--config.data.prepared={directory}", "--config.data.max_source_length", "99")
    with pytest.raises(DataError, match=r"data\.max_source_length was 256, is 99"):
        data.Prepared.open(directory, config)


def test_a_run_follows_what_was_held_out(moved, experiment):
    folder, config = moved
    # Where there is a validation split, nothing is held out, whatever the setting says.
    assert "data.hold_out" not in data.Prepared.open(config.data.prepared).report["settings"]
    held_out = changed(config, data__hold_out=20)
    lines = []
    data.prepare(held_out, log=lines.append)
    assert "nothing to do" in lines[0]
    edit(folder, lambda report: report["settings"].update({"data.hold_out": 7}))  # as an older version recorded it
    data.Prepared.open(config.data.prepared, held_out)
    without = changed(config, data__valid="", data__prepared=str(folder / "without"))
    data.prepare(without, **QUIET)
    file = folder / "preset.py"
    file.write_text(
        "from janus_jax.config import default_config\n"
        "def get_config():\n"
        "  config = default_config()\n"
        "  config.data.hold_out = 20\n"
        "  return config\n"
    )
    for age in ("new", "older"):
        if age == "older":
            edit(folder, lambda report: report["settings"].pop("data.hold_out"), "../without/report.json")
        followed = experiment(f"--config.data.prepared={folder / 'without'}", file=file)
        assert followed.data.hold_out == 0
        data.Prepared.open(folder / "without", followed)
    with pytest.raises(DataError, match=r"data\.hold_out was 0, is 20"):
        data.Prepared.open(folder / "without", changed(without, data__hold_out=20))


# Settings of data that leave the prepared examples as they are: those of batches, masks and noise, and two places.
LATER = set(
    "tokens_per_batch batch_multiple buckets seed workers mask_sampler mask_ratio mask_span mask_suffix noise_ratio noise_span "
    "noise_hidden rotate permute_sentences prepared tfds_data_dir".split()
)


def test_every_setting_of_text_and_data_is_compared_or_has_no_part_in_preparing():
    shaping = set(identity._DATA_SETTINGS)
    assert {field.name for field in dataclasses.fields(config_lib.DataConfig)} == shaping | LATER
    assert not shaping & LATER
    assert {field.name for field in dataclasses.fields(config_lib.TextConfig)} == set(identity._TEXT_SETTINGS)
    assert set(identity._OF_ONE_SOURCE) | set(identity._OF_PAIRS) <= shaping


def test_own_tsv_files_need_no_test_split_and_no_fitting_vocabulary(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, pairs in (("train.tsv", CLEAN), ("dev.tsv", CLEAN[:5])):
        (tmp_path / name).write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    file = tmp_path / "experiment.py"
    file.write_text("from janus_jax.config import default_config\nget_config = default_config\n")
    own = ["source=tsv", "train=train.tsv", "valid=dev.tsv", "prepared=prepared"]
    assert command.main([f"--config={file}", *(f"--config.data.{setting}" for setting in own)]) == 0
    shown = capsys.readouterr().out
    assert "warning: config.text.vocab_size: 8000 is too large for this text; the tokenizer has " in shown
    assert list(data.Prepared.open(tmp_path / "prepared").splits) == ["train", "valid"]
    assert (
        command.main([f"--config={file}", *(f"--config.data.{s}" for s in own), "--config.data.test=absent.tsv"]) == 2
    )
    assert "config.data.test: no file 'absent.tsv'" in capsys.readouterr().err
