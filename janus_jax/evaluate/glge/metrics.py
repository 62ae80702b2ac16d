"""The metrics of the GLGE tasks, 0 to 100 (distinct-1 and -2, too).

ROUGE is Google's rouge-score, whose words and stems are those of ROUGE-1.5.5. BLEU, ROUGE-L and METEOR of questions are
those of pycocoevalcap, which are the reference's. Sentence BLEU of dialogue is NLTK's.
"""

import contextlib
import io
import itertools
import math
import re
import shutil
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

Lines = Sequence[str]
_INSTALL = 'pip install -r requirements-glge.txt (or, without the checkout, pip install "janus_jax[glge]")'


class MissingLibraryError(ValueError):
    """A library of a metric is not installed."""


def rouge(hypotheses: Sequence[Lines], references: Sequence[Lines]) -> dict[str, float]:
    """ROUGE-1, -2 and -L of stems (Porter's, of words of more than three letters): mean F1 over the texts.

    Args:
      hypotheses, references: texts, each a list of its sentences, which ROUGE-L compares one by one.
    """
    from rouge_score.rouge_scorer import RougeScorer  # its imports take a second

    scorer = RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)
    scores = [scorer.score("\n".join(r), "\n".join(h)) for h, r in zip(hypotheses, references, strict=True)]
    names = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeLsum"}
    return {name: 100 * _mean([one[key].fmeasure for one in scores]) for name, key in names.items()}


def questions(hypotheses: dict[str, str], references: dict[str, list[str]]) -> dict[str, float | None]:
    """ROUGE-L (beta 1.2), corpus BLEU-4 and METEOR 1.5 by key; METEOR is None where there is no Java.

    Raises:
      MissingLibraryError: pycocoevalcap is not installed.
    """
    bleu, rouge_l, meteor = caption_metrics()
    kept = {key: [text] for key, text in hypotheses.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        (*_, bleu4), _ = bleu.Bleu(4).compute_score(references, kept)
        rouge_score, _ = rouge_l.Rouge().compute_score(references, kept)
        meteor_score = meteor.Meteor().compute_score(references, kept)[0] if shutil.which("java") else None
    return {
        "rougeL": 100 * float(rouge_score),
        "bleu4": 100 * float(bleu4),
        "meteor": None if meteor_score is None else 100 * float(meteor_score),
    }


def caption_metrics() -> tuple[Any, Any, Any]:
    """The modules of pycocoevalcap: bleu, rouge and meteor.

    Raises:
      MissingLibraryError: it is not installed.
    """
    try:
        from pycocoevalcap.bleu import bleu
        from pycocoevalcap.meteor import meteor
        from pycocoevalcap.rouge import rouge as rouge_l
    except ImportError as error:
        raise MissingLibraryError(
            f"tasks squadqg and msqg are scored by pycocoevalcap, which is not installed ({error.name}); {_INSTALL}"
        ) from error
    return bleu, rouge_l, meteor


def answers(hypotheses: Lines, references: Lines) -> dict[str, float]:
    """CoQA's F1: of the words of an answer without case, punctuation and articles, mean over the answers."""
    return {"f1": 100 * _mean([_f1(_answer(h), _answer(r)) for h, r in zip(hypotheses, references, strict=True)])}


def _answer(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(hypothesis: list[str], reference: list[str]) -> float:
    if not hypothesis or not reference:
        return float(hypothesis == reference)
    return 2 * (Counter(hypothesis) & Counter(reference)).total() / (len(hypothesis) + len(reference))


def dialogue(hypotheses: Sequence[Lines], references: Sequence[Lines]) -> dict[str, float]:
    """Sentence BLEU-1 and -2 with the smoothing method 7 of NLTK 3.5, as the reference has them, and distinct-1 and -2.

    The published scores are of November 2020, when 3.5 was the newest. Method 7 is method 4, then method 5. Method 4 puts
    i + 5 / ln(words), over all n-grams, in place of a precision of 0 (i counts from 0). NLTK 3.6 and later have a much
    smaller number there. Method 5, which has not changed, averages each precision with its neighbours, and takes 1 + the
    first for the one before it. So BLEU-1 is far above the share of words that match. An exception, as for a text of one
    word, counts 0.

    Args:
      hypotheses, references: texts, each a list of its words.
    """
    from nltk.translate import bleu_score

    def smoothing(p_n: list[Any], *, references: Any, hypothesis: Lines, hyp_len: int) -> list[Any]:
        filled = [p if p.numerator else (i + 5 / math.log(hyp_len)) / p.denominator for i, p in enumerate(p_n)]
        return bleu_score.SmoothingFunction().method5(filled, references, hypothesis, hyp_len)

    def bleu(hypothesis: Lines, reference: Lines, weights: tuple[float, ...]) -> float:
        try:
            return bleu_score.sentence_bleu([reference], hypothesis, weights, smoothing)
        except Exception:  # as in the reference
            return 0.0

    pairs = list(zip(hypotheses, references, strict=True))
    return {
        "bleu1": 100 * _mean([bleu(*pair, (1.0, 0.0, 0.0, 0.0)) for pair in pairs]),
        "bleu2": 100 * _mean([bleu(*pair, (0.5, 0.5, 0.0, 0.0)) for pair in pairs]),
        **distinct(hypotheses),
    }


def corpus_dialogue(hypotheses: Sequence[Lines], references: Sequence[Lines]) -> dict[str, float]:
    """Corpus BLEU-1 and -2 without smoothing, and distinct-1 and -2; arguments as `dialogue`."""
    from nltk.translate import bleu_score

    pooled = [[reference] for reference in references]
    return {
        "bleu1": 100 * float(bleu_score.corpus_bleu(pooled, hypotheses, (1.0,))),
        "bleu2": 100 * float(bleu_score.corpus_bleu(pooled, hypotheses, (0.5, 0.5))),
        **distinct(hypotheses),
    }


def distinct(texts: Sequence[Lines]) -> dict[str, float]:
    """Different words, and pairs of neighbours, of all texts, over their number (times 100)."""
    words = Counter(word for text in texts for word in text)
    pairs = Counter(pair for text in texts for pair in itertools.pairwise(text))
    return {
        name: 100 * len(counts) / max(counts.total(), 1)
        for name, counts in (("distinct1", words), ("distinct2", pairs))
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
