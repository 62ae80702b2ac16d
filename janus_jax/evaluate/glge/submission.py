"""Predictions in the layout that GLGE takes for submission, TASK.VERSION.SPLIT in one folder; their scores and table."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.decode.io import LinesError, read_lines
from janus_jax.evaluate.glge.tasks import TASKS, Scores, check_installed, overall, score
from janus_jax.evaluate.scores import check_aligned

SPLITS = ("dev", "test")
# Scores on the test split of the easy version, from Liu et al. 2021, the paper of GLGE, and from the papers of BANG and
# PreDAT, whose decoding is non-autoregressive; the metrics of a task in the order of
# its scores here.
PUBLISHED: dict[str, dict[str, str]] = {
    "Transformer": {
        "cnndm": "39.5/16.7/36.7", "xsum": "30.5/10.4/24.2", "squadqg": "30.7/4.8/10.9", "coqa": "15.7",
        "personachat": "38.3/33.6/0.2/0.7", "overall": "21.9",
    },
    "BART-large": {
        "cnndm": "44.1/21.2/40.9", "xsum": "45.1/22.2/37.2", "squadqg": "50.3/22.0/26.4", "coqa": "68.6",
        "personachat": "49.9/40.0/1.3/8.0", "overall": "35.8",
    },
    "ProphetNet-large": {
        "cnndm": "44.2/21.1/41.3", "xsum": "44.4/21.3/36.4", "squadqg": "51.5/22.5/26.0", "coqa": "73.0",
        "personachat": "46.7/39.0/1.3/7.5", "overall": "36.5",
    },
    "BANG (parallel)": {"xsum": "32.6/9.0/27.4", "squadqg": "44.1/12.8/19.0"},
    "PreDAT (parallel)": {"xsum": "39.8/17.4/32.7"},
}  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """The predictions of a folder for one split of one task.

    Attributes:
      path: the file, TASK.VERSION.SPLIT.
      lines: a prediction for each source.
      sources: of the task's split.
      references: one for each source; None: the benchmark's folder has no targets for this split.
    """

    task: str
    split: str
    path: Path
    lines: list[str]
    sources: list[str]
    references: list[str] | None


def read_predictions(data: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Predictions]:
    """All predictions of a folder, checked against the benchmark's data.

    Files with other names are left out, and so are tasks without a folder in `data`.

    Args:
      data: a version of the benchmark, as data/glge/easy, with TASK_data/org_data/SPLIT.src.
      folder: files TASK.VERSION.SPLIT, where VERSION is the name of the folder `data`.

    Raises:
      LinesError: a folder or a file is missing, or no file has such a name.
      AlignmentError: a file has not one line for each source.
      MissingLibraryError: a library that scores one of the tasks is not installed.
    """
    version = Path(data).resolve().name
    for path in map(Path, (data, folder)):
        if not path.is_dir():
            raise LinesError(f"{path}: no such folder; name one")
    pattern = re.compile(rf"({'|'.join(TASKS)})\.{re.escape(version)}\.({'|'.join(SPLITS)})")
    matches = [match for path in sorted(Path(folder).iterdir()) if (match := pattern.fullmatch(path.name))]
    matches = [match for match in matches if Path(data, f"{match[1]}_data").is_dir()]
    if not matches:
        raise LinesError(
            f"{folder}: no predictions of version {version!r} for a task of {data}; name the files as xsum.{version}.test or xsum.{version}.dev. Tasks: "
            + ", ".join(TASKS)
        )
    found = []
    for match in matches:
        task, split = match.groups()
        path = Path(folder, match[0])
        prefix = Path(data, f"{task}_data/org_data/{split}")
        source, target = (Path(f"{prefix}.{side}") for side in ("src", "tgt"))
        lines, sources = read_lines(path), read_lines(source)
        if not sources:
            raise LinesError(f"{source} is empty; put the benchmark's file there")
        check_aligned(str(path), lines, str(source), sources)
        references = read_lines(target) if target.exists() else None
        if references is not None:
            check_installed(task)
            check_aligned(str(target), references, str(source), sources)
        found.append(Predictions(task, split, path, lines, sources, references))
    return found


def score_predictions(predictions: Sequence[Predictions], *, strict: bool = True) -> dict[str, dict[str, Scores]]:
    """Split -> task -> metrics, for predictions whose split has targets; see `tasks.score` for their rules and errors."""
    scores: dict[str, dict[str, Scores]] = {}
    for one in predictions:
        if one.references is not None:
            task = score(one.task, one.lines, one.references, one.sources, strict=strict)
            scores.setdefault(one.split, {})[one.task] = task
    return scores


def format_scores(scores: Mapping[str, Mapping[str, Scores]], *, published: bool) -> str:
    """A Markdown table: a line a task, a column a folder, and the overall score, which needs all eight tasks.

    Args:
      scores: title of a column -> task -> metrics.
      published: with the columns of published models.
    """
    others = PUBLISHED if published else {}
    rows = [["task", "metrics", *scores, *others]]
    for task in (task for task in TASKS if any(task in column for column in scores.values())):
        some = next(column[task] for column in scores.values() if task in column)
        cells = ["/".join(map(_number, column[task].values())) if task in column else "-" for column in scores.values()]
        rows.append([task, "/".join(some), *cells, *(model.get(task, "-") for model in others.values())])
    means = [_number(overall(dict(column))) for column in scores.values()]
    rows.append(["overall", "mean", *means, *(model.get("overall", "-") for model in others.values())])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|---|" + "--:|" * (len(rows[0]) - 2), *lines[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
