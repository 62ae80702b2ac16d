"""Scores against values worked out by hand or by sacreBLEU's own sentence examples."""

import json
import math
import random

import pytest

from janus_jax.evaluate import error_rates, latency, measure, score
from janus_jax.evaluate.__main__ import main
from janus_jax.evaluate.scores import SCORERS, AlignmentError, repeated_rate, tokenized
from tests.clock import Clock


def test_perfect_output_has_perfect_scores():
    lines = ["the cat sat on the mat .", "a man rides a horse ."]
    figures = score(lines, lines)
    assert figures["bleu"] == pytest.approx(100)
    assert figures["chrf"] == pytest.approx(100)
    assert figures["exact_match"] == 1
    assert figures["length_ratio"] == 1
    assert "tok:13a" in figures["bleu_signature"]
    assert "nc:6" in figures["chrf_signature"]


def test_rouge_worked_out_by_hand():
    figures = score(["the cat sat here", "x"], ["the cat lay here today", "y"])
    # First line: 3 of 4 and of 5 words, 1 of 3 and of 4 pairs, "the cat here" in order; second: nothing.
    assert figures["rouge1"] == pytest.approx(50 * 2 * 3 / 9)
    assert figures["rouge2"] == pytest.approx(50 * 2 * 1 / 7)
    assert figures["rougeL"] == pytest.approx(50 * 2 * 3 / 9)


def test_figures_worked_out_by_hand():
    # 4-gram precisions 4/5, 3/4, 2/3, 1/2 and no brevity penalty: BLEU is their geometric mean.
    figures = score(["a b c d e"], ["a b c d f"])
    assert figures["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert figures["exact_match"] == 0
    assert score(["a b", "c "], ["a b c d", "c"])["exact_match"] == 0.5
    assert score(["a b", "c"], ["a b c d", "c"])["length_ratio"] == pytest.approx(3 / 5)


def test_repeated_words():
    assert repeated_rate(["a a b b b c", "d"]) == pytest.approx(3 / 7)
    assert repeated_rate(["a b", "b a"]) == 0
    assert repeated_rate([""]) == 0


def test_empty_outputs_are_scored():
    assert score(["", ""], ["a b c d", "e"])["bleu"] == 0


def test_moses_words_are_scored_as_they_stand_and_joined():
    words, plain = ["he said : it 's ( well @-@ known ) , yes ."], ["he said: it's (well-known), yes."]
    figures = tokenized(words, words, plain, "en")
    assert figures["bleu_words"] == pytest.approx(100)
    assert figures["bleu"] == pytest.approx(100)
    assert figures["chrf"] == pytest.approx(100)
    assert "tok:13a" in figures["bleu_signature"]
    # Words with a space between them are words: "known)" is another one than "known" and ")".
    assert tokenized(["a b c d known)"], ["a b c d known )"], ["a b c d known)"], "en")["bleu_words"] == pytest.approx(
        100 * math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )


def test_misaligned_lines_are_refused():
    with pytest.raises(AlignmentError, match="2 hypotheses do not match 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(AlignmentError, match="no lines"):
        score([], [])
    with pytest.raises(KeyError, match="meteor"):
        score(["a"], ["a"], ["meteor"])


def test_scorers_can_be_chosen():
    assert set(score(["a"], ["a"], ["exact_match"])) == {"exact_match"}
    assert all(callable(scorer) for scorer in SCORERS.values())


def test_latency_leaves_the_warm_up_out(monkeypatch):
    clock, calls = Clock(), []
    monkeypatch.setattr(latency, "time", clock)

    def work(lines):
        clock.now += (0.2, 0.02, 0.5, 0.01)[len(calls)]
        calls.append(len(lines))
        return [line.upper() for line in lines]

    result = measure(work, ["a", "b"], runs=3)
    assert calls == [2] * 4
    assert result.seconds == pytest.approx((0.02, 0.5, 0.01))
    assert result.sentences_per_second == pytest.approx(2 / 0.02)  # of the median run
    assert result.results == ["A", "B"]
    with pytest.raises(ValueError, match="need lines"):
        measure(work, [])
    with pytest.raises(TypeError, match="lines: 'ab' is a plain string"):
        measure(work, "ab")


def test_error_rates_worked_out_by_hand():
    sources = ["t o", "t o", "a", "b"]
    hypotheses = ["T AH", "ignored", "EY", "B IY Z"]
    # "t o": one substitution against either, the first of two phonemes; "a": right; "b": one insertion to two.
    assert error_rates(hypotheses, ["T UW", "D AH", "EY", "B IY"], sources) == {
        "token_error_rate": pytest.approx(100 * 2 / 5),
        "sequence_error_rate": pytest.approx(100 * 2 / 3),
    }
    # The nearest reference counts, here the longer one, which is right.
    assert error_rates(["T UW W", "-"], ["T", "T UW W"], ["x", "x"]) == {
        "token_error_rate": 0, "sequence_error_rate": 0
    }  # fmt: skip
    # Without sources each line is a sequence of its own.
    assert error_rates(["A", "A"], ["A", "B"])["sequence_error_rate"] == 50
    assert error_rates(["", "A"], ["A B", "A"])["token_error_rate"] == pytest.approx(100 * 2 / 3)


def test_error_rates_equal_those_of_a_plain_program():
    def distance(a, b):
        table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                table[i, j] = min(
                    table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
                )
        return table[len(a), len(b)]

    rng = random.Random(0)
    lines = [[" ".join(rng.choices("ABC", k=rng.randrange(1, 9))) for _ in range(60)] for _ in range(2)]
    lines[0][::3] = lines[1][::3]
    sources = [str(i // 2 if i < 40 else i) for i in range(60)]
    errors = tokens = wrong = 0
    for key in dict.fromkeys(sources):
        places = [i for i, source in enumerate(sources) if source == key]
        hypothesis = lines[0][places[0]].split()
        pairs = [(distance(hypothesis, lines[1][i].split()), len(lines[1][i].split())) for i in places]
        best = next(pair for pair in pairs if pair[0] == min(pairs)[0])
        errors, tokens, wrong = errors + best[0], tokens + best[1], wrong + (best[0] > 0)
    assert 0 < wrong < len(set(sources))
    assert error_rates(*lines, sources) == {
        "token_error_rate": pytest.approx(100 * errors / tokens),
        "sequence_error_rate": pytest.approx(100 * wrong / len(set(sources))),
    }


def test_error_rates_need_a_reference_with_tokens():
    with pytest.raises(AlignmentError, match="all references are empty"):
        error_rates(["A"], [" "])


def test_the_command_scores_files_with_several_references(tmp_path, capsys):
    for name, lines in (("out", "T AH|T AH|EY"), ("ref", "T UW|T AH|AA"), ("src", "t o|t o|a")):
        (tmp_path / name).write_text(lines.replace("|", "\n") + "\n")
    files = [f"--hypotheses={tmp_path / 'out'}", f"--references={tmp_path / 'ref'}"]
    assert main([*files, f"--source={tmp_path / 'src'}", "--error_rates"]) == 0
    printed = capsys.readouterr().out
    assert "token_error_rate: 33.3333\nsequence_error_rate: 50.0000\n" in printed
    assert main([*files, "--error_rates", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sequence_error_rate"] == pytest.approx(100 * 2 / 3)
    for flags, message in (
        ([f"--source={tmp_path / 'src'}"], "--source: --hypotheses are scored without sources; leave it out"),
        (["--traces=x", "--trace_html=y", "--error_rates"], "give --hypotheses"),
    ):
        with pytest.raises(SystemExit):
            main([*files, *flags])
        assert message in capsys.readouterr().err
