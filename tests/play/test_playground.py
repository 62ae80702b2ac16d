"""What the playground shows is what the generator gives; bad input is named."""

import itertools
import json

import numpy as np
import pytest

from janus_jax.config import resolve
from janus_jax.decode import Generator
from janus_jax.play import markup
from janus_jax.play.playground import InputError, Playground, Trial, examples

SENTENCE = "some little words & more"


def test_the_modes_are_those_that_the_model_was_trained_for(generator, playground):
    names = [trial.name for trial in playground.trials(beam=2)]
    assert names == ["ar", "beam", "speculative", "nar", "ctc", "ctc_beam", "dag", "dag_beam"]
    trained = Generator(generator.net, generator.params, generator.tokenizer, trained=("ar", "ctc"))
    assert [trial.name for trial in Playground(trained).trials(beam=1)] == ["ar", "ctc"]


@pytest.mark.slow
def test_the_settings_of_the_checkpoint_do_not_get_in_the_way(generator):
    own = resolve({"decode": {"nbest": 3, "ar": {"sample": True, "no_repeat_ngram": 3}}}).decode
    playground = Playground(Generator(generator.net, generator.params, generator.tokenizer, own))
    trials = playground.trials(beam=2)
    # Speculation cannot watch n-grams.
    assert [trial.name for trial in trials] == ["ar", "beam", "nar", "ctc", "ctc_beam", "dag", "dag_beam"]
    assert not playground.decode(SENTENCE, trials[0]).output.others
    assert not playground.fill(SENTENCE, "<mask>").output.others


@pytest.mark.parametrize("name", ["ar", "nar", "ctc", "dag", "speculative"])
def test_a_trial_gives_the_generators_output(generator, playground, name):
    [trial] = [trial for trial in playground.trials(beam=2, passes=3) if trial.name == name]
    decoded = playground.decode(SENTENCE, trial)
    [expected] = generator.generate([SENTENCE], mode=trial.mode, trace=trial.trace, **trial.settings)
    assert (decoded.output.tokens, decoded.output.trace) == (expected.tokens, expected.trace)
    assert decoded.pieces == generator.tokenizer.pieces(expected.tokens)
    assert decoded.seconds > 0
    record = json.loads(json.dumps(playground.as_json(decoded), allow_nan=False))
    assert (record["text"], record["tokens"]) == (expected.text, expected.tokens)


def test_the_rows_of_ctc_collapse_to_its_output(generator, playground):
    rows = playground.ctc_rows(SENTENCE)
    emitted = [piece if chosen else None for piece, chosen in zip(rows.pieces, rows.chosen, strict=True)]
    merged = [piece for piece, _ in itertools.groupby(emitted) if piece is not None]
    [output] = generator.generate([SENTENCE], mode="ctc", beam=1)
    assert merged == generator.tokenizer.pieces(output.tokens)
    assert len(rows.pieces) > len(merged)
    assert all(0 <= chance <= 1 for chance in rows.tokens + rows.blanks)


def test_the_path_of_the_graph_is_the_lookahead_output(generator, playground):
    graph = playground.dag_vertices(SENTENCE)
    [output] = generator.generate([SENTENCE], mode="dag", search="lookahead")
    assert [graph.pieces[vertex][0] for vertex in graph.path[1:-1]] == generator.tokenizer.pieces(output.tokens)
    assert (graph.path[0], graph.path[-1]) == (0, len(graph.pieces) - 1)
    # All paths come through the first and the last vertex.
    np.testing.assert_allclose(graph.visits[[0, -1]], 1.0, atol=1e-4)
    np.testing.assert_allclose(graph.links[:-1].sum(axis=1), 1.0, atol=1e-4)


def test_words_taken_away_become_gaps_of_as_many_tokens_and_are_filled(generator, playground):
    [output] = generator.generate([SENTENCE], mode="ar", beam=1)
    words = playground.words(output.tokens)
    assert " ".join(word for word, _ in words) == output.text
    assert sum(count for _, count in words) == len(output.tokens)
    target = playground.with_gaps(words, [1])
    assert target.split().count("<mask>") == words[1][1]
    assert target.replace("<mask> ", "").split() == [word for place, (word, _) in enumerate(words) if place != 1]
    decoded = playground.fill(SENTENCE, target)
    [expected] = generator.generate([SENTENCE], mode="infill", targets=[target])
    assert decoded.output.tokens == expected.tokens
    assert generator.net.specials.mask not in decoded.output.tokens
    for removed in ([], [99]):
        with pytest.raises(InputError, match="no gap"):
            playground.with_gaps(words, removed)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "no text"),
        (" \n ", "no text"),
        (None, "no text"),
        (["a"], "no text"),
        ("one\ntwo", "2 lines"),
        ("ab " * 17, "17 tokens.*at most 16"),
        ("x" * 10**6, "1000000 characters.*at most 16"),
        ("a\ud800", "character 2"),
    ],
)
def test_what_cannot_be_decoded_is_named(playground, sentence, message):
    with pytest.raises(InputError, match=message):
        playground.check(sentence)


def test_a_sentence_of_the_longest_length_is_accepted(playground):
    assert playground.check(" ab" * 16 + " ") == ("ab " * 16).strip()


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("ar", {"beam": 11}, "11 is not one of 1, 2"),
        ("ar", {"beam": True}, "True is not one of"),
        ("ar", {"beam": "2"}, "'2' is not one of"),
        ("ar", {"lenpen": 0.123}, "0.123 is not one of"),
        ("ar", {"lenpen": [1.0]}, "is not one of"),
        ("nar", {"passes": 10**9}, "is not one of"),
        ("ar", {"batch_tokens": 10**9}, "not to be set here"),
        ("ar", {"allow_untrained": True}, "not to be set here"),
        ("AR", {}, "mode: 'AR', but this model was trained only for .*; choose that$"),
        ("ar", "beam", "a mode and settings"),
        (None, {}, "a mode and settings"),
    ],
)
def test_settings_from_outside_are_limited(playground, mode, settings, message):
    with pytest.raises(InputError, match=message):
        playground.check_settings(mode, settings)


def test_examples_are_different_sentences_that_fit(playground):
    assert examples(["ab", "", "ab ", "x" * 999, "cd", "ef"], 2, playground) == ["ab", "cd"]


def test_text_in_the_page_is_escaped(generator, playground):
    # The tokenizer's tokens have a "<"; so would a source in another language.
    everything = [playground.decode(SENTENCE, trial) for trial in playground.trials(beam=2, passes=2)]
    by_name = {decoded.trial.name: decoded for decoded in everything}
    hostile = Trial("x", "<script>", "ar")
    parts = [
        markup.table([*everything, playground.decode(SENTENCE, hostile)]),
        markup.steps(by_name["ar"], 2),
        markup.refinement(by_name["nar"], 2),
        markup.ctc(playground.ctc_rows(SENTENCE), by_name["ctc"]),
        markup.dag(playground.dag_vertices(SENTENCE), [by_name["dag_beam"]]),
        markup.speculation(by_name["speculative"]),
        markup.ranking([by_name["beam"]]),
        markup.filled(by_name["ar"], "<mask> a"),
    ]
    assert "&lt;" in parts[0]
    for part in parts:
        assert "t5<" not in part
        assert "<script" not in part
        assert "<mask>" not in part
    text = by_name["ar"].output.text
    assert text.count("<") == markup.filled(by_name["ar"], "").count("&lt;") > 0
