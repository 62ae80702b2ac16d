"""The registry of modes, and their settings as keywords and flags."""

import dataclasses
import typing

import pytest

from janus_jax.config import ConfigError, DecodeConfig
from janus_jax.decode import MODES, Mode
from janus_jax.decode.__main__ import main
from janus_jax.decode.keywords import SHARED, places, with_keywords


def test_a_mode_is_registered_with_its_group_of_settings():
    groups = {f.name: type(getattr(DecodeConfig(), f.name)) for f in dataclasses.fields(DecodeConfig)}
    assert {name: mode.settings for name, mode in MODES.items()} == {
        name: groups[name] for name in groups if name in MODES
    }
    assert set(groups) == {*SHARED, *MODES}


@pytest.mark.parametrize("name", MODES)
def test_settings_that_a_mode_reads_of_others_exist_and_have_other_names(name):
    fields = {f.name for f in dataclasses.fields(MODES[name].settings)}
    for other, names in MODES[name].reads.items():
        assert set(names) <= {f.name for f in dataclasses.fields(MODES[other].settings)}
        assert not set(names) & {*fields, *SHARED}


@pytest.mark.parametrize("name", MODES)
def test_settings_that_need_another_exist(name):
    for setting, (other, value) in MODES[name].only_with.items():
        assert setting in places(name)
        *owner, field = places(name)[other]  # of all modes, of this one, or of one whose settings it reads
        settings = MODES[owner[0]].settings if owner else DecodeConfig
        assert value in (typing.get_args(typing.get_type_hints(settings)[field]) or (True, False))


@pytest.mark.parametrize("name", MODES)
def test_settings_for_evaluation_are_keywords_of_the_mode(name):
    for keywords in (MODES[name].validation or {}, *MODES[name].trials):
        assert with_keywords(DecodeConfig(), {"mode": name, **keywords}).mode == name
    assert MODES[name].required <= MODES[name].inputs


def test_an_unknown_loss_term_is_an_error():
    mode = MODES["nar"]
    with pytest.raises(ValueError, match="unknown loss term 'narr'"):
        Mode(mode.run, mode.settings, needs=(frozenset({"narr", "length"}),), rows=mode.rows)


def test_a_keyword_changes_the_field_of_the_chosen_mode():
    base = with_keywords(
        DecodeConfig(), {"mode": "ctc", "beam": 7, "tokens": 3, "rerank": "ar", "lenpen": 0.5, "nbest": None}
    )
    assert (base.mode, base.nbest, base.ctc.beam, base.ctc.tokens, base.ar.lenpen) == ("ctc", 1, 7, 3, 0.5)
    assert base.ar.beam == DecodeConfig().ar.beam
    changed = with_keywords(base, {"mode": "ar", "beam": 2})
    assert (changed.ar.beam, changed.ctc.beam) == (2, 7)
    assert places("speculative")["max_length_b"] == ("ar", "max_length_b")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"passes": 3}, "passes: mode ar has no such setting; it belongs to mode nar"),
        ({"draft": "never"}, "draft: mode ar has no such setting; it belongs to mode speculative and infill"),
        ({"mode": "nar", "pases": 3}, "pases: mode nar has no such setting; did you mean passes?"),
        ({"mode": "infill", "zzz": 3}, "zzz: mode infill has no such setting; its settings: mode, nbest, rules"),
        ({"mode": "nar", "passes": "three"}, "config.decode.nar.passes: expected int, got 'three'"),
        ({"mode": "narr"}, "config.decode.mode: 'narr' is not one of 'ar', 'nar'"),
        ({"temperature": 0.5}, "temperature: it has no effect in mode ar unless sample is True; set that too"),
        ({"sample": True, "beam": 3}, "beam: it has no effect in mode ar unless sample is False; set that too"),
        ({"mode": "nar", "lenpen": 0.5}, "lenpen: it has no effect in mode nar unless rerank is ar; set that too"),
        ({"mode": "dag", "beam": 3}, "beam: it has no effect in mode dag unless search is beam; set that too"),
        (
            {"mode": "dag", "rerank": "ar"},
            "rerank: ar, but mode dag has one candidate a sentence with these settings; set search to beam too",
        ),
        (
            {"mode": "ctc", "beam": 1, "rerank": "ar"},
            "rerank: ar, but mode ctc has one candidate a sentence with these settings; raise beam too",
        ),
        (
            {"mode": "nar", "length_beam": 1, "rerank": "ar"},
            "rerank: ar, but mode nar has one candidate a sentence with these settings; raise length_beam too",
        ),
        (
            {"mode": "ctc", "rules": "released"},
            "rules: released, but mode ctc has no such rules; only ar and nar and spec",
        ),
        ({"rules": "released", "stop": "best"}, "stop: it has no effect in mode ar unless rules is default"),
        (
            {"mode": "nar", "rules": "released", "lengths": "top"},
            "lengths: it has no effect in mode nar unless rules is default",
        ),
        ({"mode": "infill", "accept_top": 3}, "accept_top 3 and accept_gap 0.0: one has no effect without the other"),
        (
            {"mode": "speculative", "accept_gap": 0.5},
            "accept_top 1 and accept_gap 0.5: one has no effect without the other",
        ),
        ({"mode": "infill", "nbest": 2}, "config.decode.nbest: 2, but mode infill gives one output a sentence"),
    ],
)
def test_wrong_keywords_are_named(keywords, message):
    with pytest.raises(ConfigError) as caught:
        with_keywords(DecodeConfig(), keywords)
    assert str(caught.value).startswith(message)


def test_help_describes_every_setting_once(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for mode in MODES.values():
        for field in dataclasses.fields(mode.settings):
            assert f" --{field.name}" in text
            assert field.metadata["help"].replace("- ", "-") in text
    assert (
        "[ar] Hypotheses a sentence; 1 is greedy search. (at least 1 and at most 1000, default: 5) [ctc] Prefixes a sentence"
        in text
    )
    assert (
        "[speculative, infill] Passes of mask-predict that make a draft; other drafts do not read it. (at least 1 and at most 256, default: 1)"
        in text
    )


def test_modes_that_share_a_flag_agree_on_its_type():
    kinds = {}
    for mode in MODES.values():
        for name, kind in typing.get_type_hints(mode.settings).items():
            assert kinds.setdefault(name, kind) == kind, name


def test_kept_settings_are_those_of_values_of_the_same_type():
    assert with_keywords(DecodeConfig(), {"mode": "ar", "beam": 1}).ar.beam == 1
    with pytest.raises(ConfigError, match=r"beam.*True"):
        with_keywords(DecodeConfig(), {"mode": "ar", "beam": True})
    with pytest.raises(ConfigError, match=r"beam.*\[1\]"):
        with_keywords(DecodeConfig(), {"mode": "ar", "beam": [1]})
