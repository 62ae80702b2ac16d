"""Prepares a dataset: `python -m janus_jax.data --config=configs/x.py[:preset] [--config.data.key=value ...]`."""

import os
import sys
from collections.abc import Sequence

from absl import flags

from janus_jax import command_line
from janus_jax.checkpoint import CheckpointError
from janus_jax.config import Config
from janus_jax.data.errors import DataError
from janus_jax.data.prepare import prepare
from janus_jax.data.sample import write_sample
from janus_jax.text import TokenizerError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (default: those of the process); returns the exit status, see `command_line`."""
    mistakes = (DataError, TokenizerError, CheckpointError, OSError)
    return command_line.run(
        argv, module="janus_jax.data", doc=__doc__, define=_define, body=_prepare, mistakes=mistakes
    )


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("overwrite", False, "Replace data prepared with other settings.", flag_values=values)
    flags.DEFINE_integer(
        "processes",
        0,
        "Processes that tokenize plain text; 0: one per core.",
        lower_bound=0,
        upper_bound=1024,
        flag_values=values,
    )
    flags.DEFINE_bool("download", False, "Let TFDS fetch a missing dataset.", flag_values=values)
    flags.DEFINE_bool(
        "write_sample",
        False,
        "First write text of the built-in corpus to the files that the config names, to try it without text of your own.",
        flag_values=values,
    )


def _prepare(config: Config, values: flags.FlagValues) -> int:
    if values.write_sample:
        print("sample:", ", ".join(str(path) for path in write_sample(config.data)))
    # The cores that this process may use, where the system knows them.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = values.processes or cores
    prepare(config, overwrite=values.overwrite, download=values.download, processes=processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
