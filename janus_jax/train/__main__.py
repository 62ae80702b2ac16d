"""Trains a model: `python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo_deen`.

Any setting can be overridden: `--config.optimizer.learning_rate=1e-3`. The same command continues a run that stopped.
Exit status 3: loss or gradient was not finite (see train.max_bad_steps).
"""

import sys
from collections.abc import Sequence

from absl import flags

from janus_jax import door, parallel
from janus_jax.checkpoint import CheckpointError
from janus_jax.config import Config
from janus_jax.data import DataError
from janus_jax.train.loop import NonFiniteLossError, train


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the door with these arguments (default: the process's own); returns the exit status, see `door`."""
    mistakes = (DataError, CheckpointError)
    return door.run(argv, module="janus_jax.train", doc=__doc__, define=_define, body=_train, mistakes=mistakes)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
    flags.DEFINE_bool("allow_changes", False, "Continue a run although its settings differ.", flag_values=values)


def _train(config: Config, values: flags.FlagValues) -> int:
    parallel.start()
    try:
        final = train(config, values.workdir, allow_changes=values.allow_changes)
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print("  ".join(f"{name} {value:.4g}" for name, value in final.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
