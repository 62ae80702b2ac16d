"""Scores of a checkpoint for its model card: those of the run's own evaluation, and those of a file of scores."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax import config as config_lib
from janus_jax.checkpoint import Loaded
from janus_jax.convert.errors import ConvertError
from janus_jax.decode import MODES
from janus_jax.evaluate.settings import describe
from janus_jax.metrics import evaluations

# Of a file's metrics, those that compare outputs with references: name -> the Hub's name, and the name in the card.
_METRICS = {
    "bleu": ("bleu", "BLEU"),
    "chrf": ("chrf", "chrF"),
    "exact_match": ("exact_match", "exact match"),
    "bleu_words": ("bleu", "BLEU of Moses words"),
    "token_error_rate": ("token_error_rate", "token error rate"),
    "sequence_error_rate": ("sequence_error_rate", "sequence error rate"),
}


@dataclass(frozen=True)
class Score:
    """One number that was measured with the model."""

    split: str  # the text that it was measured on
    metric: str  # the Hub's name: "bleu"
    name: str  # in the card: "BLEU"
    decoding: str  # a setting, as "ar:beam=5"; "": the score of given targets
    value: float


def scores_of_run(step_directory: Path, loaded: Loaded) -> list[Score]:
    """What a run's evaluation at the checkpoint's own step measured; nothing for a checkpoint outside a run.

    Args:
      step_directory: of the checkpoint.
      loaded: the checkpoint.

    Raises:
      ConfigError: metrics.jsonl cannot be read.
    """
    if step_directory.parent.name != "checkpoints" or loaded.about.get("made_by") != "train":
        return []
    scores, count = [], loaded.config.train.eval_sentences
    for name, value in evaluations(step_directory.parents[1]).get(loaded.step, {}).items():
        if not math.isfinite(value):
            continue
        if name == "valid/loss":
            scores.append(Score("validation", "loss", "loss", "", value))
        elif name.startswith("valid/nll/"):
            rows = name.removeprefix("valid/nll/")
            scores.append(Score("validation", "nll", f"negative log-likelihood of a token, {rows} rows", "", value))
        elif name.startswith("valid/bleu_"):
            mode = name.removeprefix("valid/bleu_")
            decoding = describe({"mode": mode, **(MODES[mode].validation or {})})
            scores.append(Score("validation", "bleu", f"BLEU of at most {count} sentences", decoding, value))
    return scores


def scores_of_file(path: Path, loaded: Loaded) -> list[Score]:
    """The scores that `python -m janus_jax.evaluate --checkpoint=... --json` printed, or the quickstart's quickstart.json.

    The name of the file, without its ending, names the text that was scored; the quickstart scores its test split.

    Raises:
      ConvertError: the file cannot be read, holds something else, or has the scores of another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConvertError(f"--scores={path}: cannot be read ({error.strerror}); name a file of scores") from error
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"--scores={path}: not JSON ({error}); write it with {_COMMAND}") from error
    of_quickstart = isinstance(content, dict) and "rows" in content
    rows = content["rows"] if of_quickstart else content
    if not isinstance(rows, list) or not rows or not all(map(_is_row, rows)):
        raise ConvertError(f"--scores={path}: not the scores of a checkpoint; write them with {_COMMAND}")
    if of_quickstart:
        same = [content.get("step"), content.get("config_hash")] == [loaded.step, config_lib.config_hash(loaded.config)]
    else:
        # An old checkpoint has no checksum: whose the scores are cannot be told.
        same = loaded.checksum is not None and all(row.get("model") == loaded.checksum for row in rows)
    if not same:
        raise ConvertError(f"--scores={path}: the scores of another model; write those of this one with {_COMMAND}")
    split = "test" if of_quickstart else path.stem
    return [
        Score(split, *_METRICS.get(name, (name.rpartition("/")[2], name)), row["setting"], value)
        for row in rows
        for name, value in row.items()
        if (name in _METRICS or "/" in name) and _is_number(value)
    ]


_COMMAND = "python -m janus_jax.evaluate --checkpoint=DIR --pairs=FILE --json"


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("setting"), str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
