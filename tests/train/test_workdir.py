"""The files of a work directory that a resumed run reads: damaged ones are named with their fix."""

import json
import re

import pytest

from janus_jax import metrics
from janus_jax.config import Config, ConfigError, resolve, to_json
from janus_jax.train import workdir


@pytest.fixture
def folder(tmp_path):
    """A run that has saved a checkpoint."""
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    workdir.save_settings(Config(), "abc", tmp_path)
    return tmp_path


def test_what_the_run_started_with_is_compared(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.json", "data.json"]
    assert (folder / "config.json").read_text() == to_json(Config()) + "\n"
    assert workdir.changed_settings(Config(), "abc", folder, False) == []
    with pytest.raises(ConfigError, match="abc, now abd"):
        workdir.changed_settings(Config(), "abd", folder, False)


def test_allowed_changes_are_listed(folder):
    changed = resolve({"model": {"dropout": 0.25}, "optimizer": {"b1": 0.5}, "train": {"keep_last": 7}})
    differences = workdir.changed_settings(changed, "abd", folder, True)
    assert differences == [
        f"model.dropout: {Config().model.dropout}, now 0.25",
        "optimizer.b1: 0.9, now 0.5",
        f"the examples in {changed.data.prepared}: abc, now abd",
    ]  # but not keep_last, which may always change
    with pytest.raises(ConfigError, match=re.escape(f"({'; '.join(differences)}); change them back")):
        workdir.changed_settings(changed, "abd", folder, False)


def test_a_setting_without_effect_is_no_change(folder):
    """Older versions accepted it, and this one asks for 0."""
    raw = json.loads(to_json(resolve({"objective": {"name": "ar"}})))
    raw["objective"]["nar_correction"] = 0.3
    (folder / "config.json").write_text(json.dumps(raw))
    assert workdir.changed_settings(resolve({"objective": {"name": "ar"}}), "abc", folder, False) == []
    raw["objective"]["name"] = "janus"
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=r"objective\.nar_correction: 0\.3, now 0\.0"):
        workdir.changed_settings(Config(), "abc", folder, False)


@pytest.mark.parametrize("allow_changes", [False, True])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"contents": 3}', b"[" * 100_000], ids=range(8)
)
@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_damaged_file_is_named_with_the_fix(folder, name, content, allow_changes):
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{folder / name}: .* restore a copy, or remove the file"):
        workdir.changed_settings(Config(), "abc", folder, allow_changes)
    (folder / name).unlink()
    assert workdir.changed_settings(Config(), "abc", folder, allow_changes) == []


GOOD = '{"step": 2, "loss/total": 1.5}'


@pytest.mark.parametrize(
    "line",
    [b"{}", b"null", b"[]", b"7", b"\xff", b'{"step"', b'{"step": "2"}', b'{"step": 2, "loss": "x"}', b"[" * 100_000],
    ids=range(9),
)
def test_a_line_that_is_no_record_is_named_but_a_last_one_is_a_cut(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f"{GOOD}\n".encode() + line + f"\n{GOOD}\n".encode())
    with pytest.raises(ConfigError, match=rf"^{path}:2: not a record of metrics \(.*\); remove this line"):
        metrics.read_metrics(path)
    path.write_bytes(f"{GOOD}\n".encode() + line)
    assert metrics.read_metrics(path) == [json.loads(GOOD)]


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: cannot be read \(Is a directory\)"):
        metrics.read_metrics(tmp_path / "metrics.jsonl")
