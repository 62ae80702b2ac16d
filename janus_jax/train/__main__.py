"""Trains a model: `python -m janus_jax.train --config=configs/demo_deen.py --workdir=runs/demo`.

Any setting can be overridden: `--config.optimizer.learning_rate=1e-3`. The same command continues a run that stopped.
"""

import sys

from absl import flags
from ml_collections import config_flags


def main(argv: list[str]) -> int:
    """Runs the door; returns the exit status (2: a mistake in what was asked for, with the fix on stderr)."""
    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Experiment file, FILE.py[:argument].", flag_values=values
    )
    workdir_flag = flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        values(["python -m janus_jax.train", *argv])
    except (flags.Error, AttributeError, FileNotFoundError, TypeError, ValueError) as error:
        return _fail(f"{error}")
    if values.help:
        print(f"{__doc__}\n{values.main_module_help()}")
        return 0
    if config_flag.value is None or workdir_flag.value is None:
        return _fail("--config and --workdir are needed, for example --config=configs/demo_deen.py --workdir=runs/demo")

    from janus_jax import parallel
    from janus_jax.checkpoint import CheckpointError
    from janus_jax.config import ConfigError, resolve
    from janus_jax.data import DataError
    from janus_jax.train.loop import NonFiniteLossError, train

    try:
        config = resolve(config_flag.value)
        parallel.start()
        final = train(config, workdir_flag.value)
    except (ConfigError, DataError, CheckpointError) as error:
        return _fail(str(error))
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print("  ".join(f"{name} {value:.4g}" for name, value in final.items()))
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
