"""Reads metrics.jsonl, the records that a training run writes."""

import json
from pathlib import Path
from typing import Any

from janus_jax.config import ConfigError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order, without a last line that a crash cut short.

    Raises:
      ConfigError: the file cannot be read, or another line is not a record.
    """
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give read permission, or move it away"
        ) from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_record(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ConfigError(
                    f"{path}:{number}: not a record of metrics ({error}); remove this line, or restore a copy of the file"
                ) from error
    return records


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError('no object with a "step"')
    if not all(isinstance(value, int | float) for value in record.values()):
        raise ValueError("a metric that is no number")
    return record


def evaluations(workdir: Path) -> dict[int, dict[str, float]]:
    """The metrics of a run's evaluations, by step."""
    return {
        record["step"]: {name: value for name, value in record.items() if name != "step"}
        for record in read_metrics(workdir / "metrics.jsonl")
        if "valid/loss" in record
    }
