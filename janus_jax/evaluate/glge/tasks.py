"""The eight tasks of GLGE (Liu et al. 2021) and their scores, by the rules of the reference scripts or by clean ones.

strict: what the scripts of the benchmark compute, with their quirks; compare it with published scores. clean: the same
metrics without these quirks; compare models with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus_jax.evaluate.glge import metrics
from janus_jax.evaluate.glge.text import (
    LOWER_NAMES,
    REFERENCE_END,
    SENTENCE_END,
    join_wordpieces,
    repair_tokens,
    summary_sentences,
)
from janus_jax.evaluate.scores import AlignmentError
from janus_jax.text import list_of_texts

Lines = Sequence[str]
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Task:
    """A task of GLGE."""

    score: Callable[[Lines, Lines, Lines, bool], Scores]  # hypotheses, references, sources, strict
    needs_sources: bool = False  # since equal sources share their references


def _cnndm(hypotheses: Lines, references: Lines, _: Lines, strict: bool) -> Scores:
    if strict:
        hypotheses, references = _with_reference(hypotheses, references)
    split = [summary_sentences(line) if strict else line.split(SENTENCE_END) for line in hypotheses]
    return metrics.rouge(split, [line.split(REFERENCE_END) for line in references])


def _gigaword(hypotheses: Lines, references: Lines, _: Lines, strict: bool) -> Scores:
    if strict:
        hypotheses, references = _with_reference(hypotheses, references)
        hypotheses = [repair_tokens(line, LOWER_NAMES).replace("1", "#") for line in hypotheses]
    return metrics.rouge([[line] for line in hypotheses], [[line] for line in references])


def _news(hypotheses: Lines, references: Lines, _: Lines, strict: bool) -> Scores:
    def sentences(line: str) -> list[str]:
        return line.split(" .") if strict else [line]  # as files2rouge does: the full stop of "U.S." ends nothing

    return metrics.rouge(list(map(sentences, hypotheses)), list(map(sentences, references)))


def _squadqg(hypotheses: Lines, references: Lines, sources: Lines, strict: bool) -> Scores:
    hypotheses = [repair_tokens(line, LOWER_NAMES) if strict else line for line in hypotheses]
    return _msqg(*([line.strip().lower() for line in lines] for lines in (hypotheses, references, sources)), strict)


def _msqg(hypotheses: Lines, references: Lines, sources: Lines, strict: bool) -> Scores:
    pooled: dict[str, list[str]] = {}
    for source, reference in zip(sources, references, strict=True):
        pooled.setdefault(source, []).append(reference)
    if strict:  # the last prediction of a source wins
        return metrics.questions(dict(zip(sources, hypotheses, strict=True)), pooled)
    keys = list(map(str, range(len(sources))))
    return metrics.questions(
        dict(zip(keys, hypotheses, strict=True)),
        {key: pooled[source] for key, source in zip(keys, sources, strict=True)},
    )


def _coqa(hypotheses: Lines, references: Lines, _: Lines, _strict: bool) -> Scores:
    return metrics.answers(hypotheses, references)


def _personachat(hypotheses: Lines, references: Lines, _: Lines, strict: bool) -> Scores:
    if strict:
        sides = ([line.strip().split(" ") for line in lines] for lines in (hypotheses, references))
        return metrics.dialogue(*sides)
    return metrics.corpus_dialogue(*([line.split() for line in lines] for lines in (hypotheses, references)))


def _with_reference(hypotheses: Lines, references: Lines) -> tuple[list[str], list[str]]:
    """The pairs whose reference is not empty; the reference scripts leave the others out."""
    pairs = [(h, r) for h, r in zip(hypotheses, references, strict=True) if r.strip()]
    return [h for h, _ in pairs], [r for _, r in pairs]


# The rules of each task, strict and clean, stand in docs/glge.md.
TASKS: dict[str, Task] = {
    "cnndm": Task(_cnndm),
    "gigaword": Task(_gigaword),
    "xsum": Task(_news),
    "msnews": Task(_news),
    "squadqg": Task(_squadqg, needs_sources=True),
    "msqg": Task(_msqg, needs_sources=True),
    "coqa": Task(_coqa),
    "personachat": Task(_personachat),
}


def check_installed(task: str) -> None:
    """Raises MissingLibraryError if a library that scores the task is not installed."""
    if TASKS[task].needs_sources:
        metrics.caption_metrics()


def score(
    task: str, hypotheses: Lines, references: Lines, sources: Lines | None = None, *, strict: bool = True
) -> Scores:
    """The metrics of a GLGE task, 0 to 100; None: a metric whose program is not here (METEOR without Java).

    Args:
      task: a key of `TASKS`.
      hypotheses: predictions, one a line; pieces of words, marked by ##, are joined, but for gigaword, where # is a digit.
      references: one for each.
      sources: one for each; tasks squadqg and msqg need them.
      strict: the rules of the reference scripts (True), or the clean ones.

    Raises:
      KeyError: an unknown task.
      AlignmentError: the numbers of lines differ, there are none, or no reference holds text.
      MissingLibraryError: pycocoevalcap is not installed (squadqg, msqg).
      TypeError: a plain string in place of a list of lines.
      ValueError: a task that needs sources has none.
    """
    if task not in TASKS:
        raise KeyError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    if sources is None and TASKS[task].needs_sources:
        raise ValueError(f"task {task} needs the sources: equal ones share their references")
    sides = {"hypotheses": hypotheses, "references": references, "sources": references if sources is None else sources}
    columns = {name: list_of_texts(name, lines) for name, lines in sides.items()}
    if len(counts := {len(lines) for lines in columns.values()}) > 1 or 0 in counts:
        text = ", ".join(f"{len(lines)} {name}" for name, lines in columns.items())
        raise AlignmentError(f"{text}; all need the same lines in the same order, and at least one")
    if not any(map(str.strip, columns["references"])):
        raise AlignmentError("all references are empty; nothing can be scored")
    predictions = columns["hypotheses"]
    if task != "gigaword":
        predictions = [join_wordpieces(line) for line in predictions]
    return TASKS[task].score(predictions, columns["references"], columns["sources"], strict)


def mean(scores: Scores) -> float | None:
    """A task's share of the overall score: the mean of its metrics; None if one of them is missing."""
    values = list(scores.values())
    return None if None in values else sum(values) / len(values)


def overall(scores: dict[str, Scores]) -> float | None:
    """GLGE's overall score: the mean over the eight tasks of each task's mean; None if a task or a metric is missing."""
    means = [mean(scores[task]) for task in TASKS if task in scores]
    return None if len(means) < len(TASKS) or None in means else sum(means) / len(means)
