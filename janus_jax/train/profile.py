"""Traces of a few steps, for TensorBoard's or XProf's trace viewer."""

import re
from pathlib import Path

import jax

from janus_jax.config import ConfigError


def profiled_steps(text: str) -> tuple[int, int] | None:
    """First and last step of `--profile=FIRST:LAST`; None for the empty text.

    Raises:
      ConfigError: the text has another form.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--profile={text}: give the first and the last step to trace, for example --profile=20:25")
    return int(match[1]), int(match[2])


class Profiler:
    """Traces the steps `first` to `last`, device and host, into a directory.

    Args:
      directory: gets plugins/profile/...; every process writes a file there.
      steps: first and last; None: nothing is traced.
    """

    def __init__(self, directory: Path, steps: tuple[int, int] | None):
        self._directory, self._steps, self._tracing = directory, steps, False

    def missed(self, start: int, steps: int) -> str:
        """A message if a run that goes on after step `start`, up to step `steps`, trains none of the steps to trace."""
        if not self._steps or (self._steps[0] <= steps and start < min(self._steps[1], steps)):
            return ""
        first, last = self._steps
        trained = f"this run trains the steps {start + 1} to {steps}" if start < steps else "there is nothing to train"
        return f"--profile={first}:{last}: nothing is traced, since {trained}"

    def before(self, step: int) -> None:
        """Call before the step starts on the device."""
        # A run that resumes between the two steps traces the rest.
        if self._steps and not self._tracing and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def after(self, step: int) -> bool:
        """Call after the step has started; whether to call `close` once it is done."""
        return self._tracing and step >= self._steps[1]

    def close(self) -> None:
        """Writes the trace."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
