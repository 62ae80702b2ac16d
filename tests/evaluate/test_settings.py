"""Several decoding settings in one table, and the command line that scores files."""

import json

import pytest

from janus_jax.config import ConfigError
from janus_jax.decode import MODES, Output
from janus_jax.evaluate.__main__ import main
from janus_jax.evaluate.scores import AlignmentError
from janus_jax.evaluate.settings import describe, evaluate_settings, format_table, parse_setting, standard_settings


class Upper:
    """Stands in for a generator: upper case, or, with a beam, right."""

    def generate(self, lines, *, progress=None, **settings):
        # A checkpoint's own settings may be others.
        assert settings["nbest"] == 1
        assert settings.get("sample", True) is not ("beam" in settings)
        if progress:
            progress(len(lines))
        return [Output(line if settings.get("beam") else line.upper(), 0.0, []) for line in lines]


def test_settings_are_read_and_written():
    assert parse_setting("nar:passes=4,lenpen=0.6,rules=released") == {
        "mode": "nar",
        "passes": 4,
        "lenpen": 0.6,
        "rules": "released",
    }
    assert parse_setting("ar") == {"mode": "ar"}
    for setting in standard_settings(MODES):
        assert parse_setting(describe(setting)) == setting
    assert {setting["mode"] for setting in standard_settings(("nar", "infill"))} == {"nar"}
    with pytest.raises(ConfigError, match="'at' is not one of ar, nar"):
        parse_setting("at:beam=1")
    with pytest.raises(ConfigError, match="name=value"):
        parse_setting("ar:beam")
    for wrong, message in (
        ("ar:lines=5", "lines: mode ar has no such setting"),
        ("ar:mode=nar", "mode stands in it twice"),
        ("nar:passes=4,passes=8", "passes stands in it twice"),
    ):
        with pytest.raises(ConfigError, match=f"--setting={wrong}: {message}"):
            parse_setting(wrong)


def test_each_setting_gives_a_row():
    lines = ["a b c d", "e f g h"]
    done = []
    rows = evaluate_settings(
        Upper(), lines, lines, [{"mode": "ar", "beam": 1}, {"mode": "nar"}], runs=2, progress=done.append
    )
    assert [(row["setting"], row["exact_match"]) for row in rows] == [("ar:beam=1", 1.0), ("nar", 0.0)]
    assert all(row["sentences_per_second"] > 0 for row in rows)
    assert rows[1]["hypotheses"] == ["A B C D", "E F G H"]
    assert sum(done) == 2 * 3 * 2
    table = format_table(rows).split("\n")
    assert len({len(line) for line in table}) == 1
    assert "100.0%" in table[2]
    with pytest.raises(AlignmentError, match="2 sources do not match 1"):
        evaluate_settings(Upper(), lines, ["a"], [{"mode": "ar"}])


def test_the_command_line_scores_files(tmp_path, capsys):
    (tmp_path / "out").write_text("a b c d\nx\n")
    (tmp_path / "ref").write_text("a b c d\ny\n")
    assert main([f"--hypotheses={tmp_path / 'out'}", f"--references={tmp_path / 'ref'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] == 0.5


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    (tmp_path / "out").write_text("a\n")
    (tmp_path / "ref").write_text("a\nb\n")
    assert main([f"--hypotheses={tmp_path / 'out'}", f"--references={tmp_path / 'ref'}"]) == 2
    error = capsys.readouterr().err
    assert "has 1 lines" in error
    assert "has 2" in error
    assert main([f"--hypotheses={tmp_path / 'none'}", f"--references={tmp_path / 'ref'}"]) == 2
    assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main([f"--references={tmp_path / 'ref'}"])
    assert exit_.value.code == 2
