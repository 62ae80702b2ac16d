"""Scores of output against references: sacreBLEU, chrF, ROUGE, error rates, and counts that explain them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from janus_jax.text import list_of_texts

Lines = Sequence[str]


class AlignmentError(ValueError):
    """Hypotheses and references are not line for line."""


def check_aligned(name: str, lines: Lines, other_name: str, other: Lines) -> None:
    """Raises AlignmentError if two files have not the same number of lines."""
    if len(lines) != len(other):
        raise AlignmentError(
            f"{name} has {len(lines)} lines but {other_name} has {len(other)}; both need the same lines in the same order"
        )


def bleu(hypotheses: Lines, references: Lines) -> dict[str, float | str]:
    """Corpus BLEU (0-100, sacreBLEU, tokenizer 13a, cased), its signature, and hypothesis / reference length in its tokens."""
    metric = BLEU()
    result = metric.corpus_score(list(hypotheses), [list(references)])
    ratio = result.sys_len / result.ref_len if result.ref_len else 0.0
    return {"bleu": result.score, "bleu_signature": str(metric.get_signature()), "length_ratio": ratio}


def tokenized(hypotheses: Lines, references: Lines, plain_references: Lines, lang: str) -> dict[str, float | str]:
    """Scores of Moses words: BLEU of the words as they stand, as papers have it, and sacreBLEU and chrF of plain text.

    Args:
      hypotheses, references: a space between words.
      plain_references: the same references before they were cut into words.
      lang: of Moses' rules for joining the hypotheses' words, for example "en".

    Returns:
      `bleu_words`, and the keys of `bleu` and `chrf`.
    """
    from sacremoses import MosesDetokenizer  # its tables take half a second

    metric = BLEU(tokenize="none", force=True)
    words = metric.corpus_score(list(hypotheses), [list(references)])
    detokenizer = MosesDetokenizer(lang=lang)
    plain = [detokenizer.detokenize(line.split()) for line in hypotheses]
    return {"bleu_words": words.score} | bleu(plain, plain_references) | chrf(plain, plain_references)


def chrf(hypotheses: Lines, references: Lines) -> dict[str, float | str]:
    """Corpus chrF2 (0-100, sacreBLEU) and its signature."""
    metric = CHRF()
    result = metric.corpus_score(list(hypotheses), [list(references)])
    return {"chrf": result.score, "chrf_signature": str(metric.get_signature())}


def rouge(hypotheses: Lines, references: Lines) -> dict[str, float]:
    """ROUGE-1, -2 and -L (0-100): mean F1 over the lines, by Google's rouge-score without stemming.

    It compares lower-cased runs of Latin letters and digits only: do not use it for other scripts.
    """
    from rouge_score.rouge_scorer import RougeScorer  # its imports take a second

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names))
    pairs = [scorer.score(reference, line) for line, reference in zip(hypotheses, references, strict=True)]
    return {name: 100 * sum(one[name].fmeasure for one in pairs) / len(pairs) for name in names}


def exact_match(hypotheses: Lines, references: Lines) -> dict[str, float]:
    """Share (0-1) of lines that equal their reference, without white space at the ends."""
    same = sum(h.strip() == r.strip() for h, r in zip(hypotheses, references, strict=True))
    return {"exact_match": same / len(references)}


def error_rates(hypotheses: Lines, references: Lines, sources: Lines | None = None) -> dict[str, float]:
    """Token and sequence error rate (0-100) of lines whose tokens are separated by white space.

    They are the phoneme and word error rate of grapheme-to-phoneme conversion, or the word and sentence error rate of
    speech recognition: the errors of all sequences divided by the tokens of their references, and the share of sequences
    with an error (`sequence_errors`).

    Args:
      hypotheses, references, sources: of `sequence_errors`.

    Returns:
      `token_error_rate` and `sequence_error_rate`.

    Raises:
      AlignmentError: no reference has a token.
    """
    counts = sequence_errors(hypotheses, references, sources)
    tokens = sum(length for _, length in counts)
    if not tokens:
        raise AlignmentError("all references are empty; nothing can be scored")
    wrong = sum(errors > 0 for errors, _ in counts)
    return {
        "token_error_rate": 100 * sum(errors for errors, _ in counts) / tokens,
        "sequence_error_rate": 100 * wrong / len(counts),
    }


def sequence_errors(hypotheses: Lines, references: Lines, sources: Lines | None = None) -> list[tuple[int, int]]:
    """The token errors of each sequence, and the tokens of the reference that they are counted against.

    Equal sources are one sequence that has several references; its hypothesis is that of their first line. Its errors are
    the edit distance (insertions, deletions, substitutions) to the nearest reference, of equally near ones the first.

    Args:
      hypotheses: lines, with white space between tokens.
      references: one for each line.
      sources: one for each line; None: every line is a sequence of its own.
    """
    from nltk.metrics.distance import edit_distance  # its imports take a second

    keys: Sequence[Any] = range(len(references)) if sources is None else sources
    sequences: dict[Any, tuple[list[str], list[list[str]]]] = {}
    for key, hypothesis, reference in zip(keys, hypotheses, references, strict=True):
        sequences.setdefault(key, (hypothesis.split(), []))[1].append(reference.split())
    return [
        min(
            ((edit_distance(hypothesis, choice), len(choice)) for choice in choices),
            key=lambda counts: counts[0],
        )
        for hypothesis, choices in sequences.values()
    ]


def repetition(hypotheses: Lines, references: Lines) -> dict[str, float]:
    """Share (0-1) of a text's words that repeat the word before, of the hypotheses and of the references.

    Words are separated by white space. Non-autoregressive output repeats words where it mixes two possible sentences.
    """
    return {"repeated": repeated_rate(hypotheses), "repeated_reference": repeated_rate(references)}


def repeated_rate(lines: Lines) -> float:
    """Share (0-1) of words equal to the word before them."""
    words = [line.split() for line in lines]
    total = sum(map(len, words))
    repeats = sum(a == b for line in words for a, b in itertools.pairwise(line))
    return repeats / total if total else 0.0


SCORERS: dict[str, Callable[[Lines, Lines], dict]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "exact_match": exact_match,
    "repetition": repetition,
}


def score(hypotheses: Lines, references: Lines, scorers: Sequence[str] = tuple(SCORERS)) -> dict[str, float | str]:
    """All metrics of the named scorers in one dictionary.

    Args:
      hypotheses: detokenised lines.
      references: one reference for each.
      scorers: keys of `SCORERS`.

    Raises:
      AlignmentError: the numbers of lines differ, or there are none.
      KeyError: an unknown scorer.
      TypeError: a plain string in place of a list of lines.
    """
    hypotheses, references = list_of_texts("hypotheses", hypotheses), list_of_texts("references", references)
    if len(hypotheses) != len(references):
        raise AlignmentError(
            f"{len(hypotheses)} hypotheses do not match {len(references)} references; both need the same lines in the same order"
        )
    if not references:
        raise AlignmentError("no lines to score; both sides are empty")
    results: dict[str, float | str] = {}
    for name in scorers:
        if name not in SCORERS:
            raise KeyError(f"unknown scorer {name!r}; known: {', '.join(SCORERS)}")
        results |= SCORERS[name](hypotheses, references)
    return results
