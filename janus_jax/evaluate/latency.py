"""Sentences a second of a function that decodes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from janus_jax.text import list_of_texts


@dataclass(frozen=True)
class Latency:
    """Result of `measure`."""

    sentences_per_second: float  # in the median run
    seconds: tuple[float, ...]  # of each run over all lines
    results: Any  # return value of the last run


def measure(
    function: Callable[[Sequence[str]], Any], lines: Sequence[str], *, runs: int = 3, warmup: int = 1
) -> Latency:
    """Times `function(lines)`.

    Args:
      function: returns when its results are on the host.
      lines: all are passed in one call.
      runs: timed runs; the median counts.
      warmup: untimed runs before them, for compilation.

    Raises:
      ValueError: no lines or no runs.
      TypeError: a plain string in place of a list of lines.
    """
    lines = list_of_texts("lines", lines)
    if not lines or runs < 1 or warmup < 0:
        raise ValueError(f"{len(lines)} lines, {runs} runs, {warmup} warm-up runs: need lines and at least one run")
    for _ in range(warmup):
        function(lines)
    seconds, results = [], None
    for _ in range(runs):
        start = time.perf_counter()
        results = function(lines)
        seconds.append(time.perf_counter() - start)
    return Latency(len(lines) / statistics.median(seconds), tuple(seconds), results)
