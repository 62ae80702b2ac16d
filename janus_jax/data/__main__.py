"""Prepares a dataset: `python -m janus_jax.data --config=configs/x.py[:arg] [--config.data.key=value ...]`."""

import sys

from absl import flags
from ml_collections import config_flags

from janus_jax.config import ConfigError, resolve
from janus_jax.data.errors import DataError
from janus_jax.data.prepare import prepare
from janus_jax.text import TokenizerError


def main(argv: list[str]) -> int:
    """Runs the door.

    Args:
      argv: program name and command-line arguments.

    Returns:
      Exit status: 0, or 1 after an error that is the user's to fix (printed to stderr).
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", help_string="Experiment file.", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_bool("overwrite", False, "Replace data prepared with other settings.", flag_values=values)
    flags.DEFINE_bool("download", False, "Let TFDS fetch a missing dataset.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        try:
            rest = values(argv)
        except (KeyError, AttributeError) as error:  # what ml_collections raises for --config.unknown.key
            raise ConfigError(
                f"the command line names a setting that does not exist: {error}; janus_jax/config.py lists all"
            ) from error
        if values.help or config.value is None or len(rest) > 1:
            unknown = f"unexpected argument {rest[1]!r}\n" if len(rest) > 1 else ""
            print(f"{unknown}{__doc__}\n{values.get_help()}", file=sys.stdout if values.help else sys.stderr)
            return 0 if values.help else 1
        _ = config.value.lock  # raises what went wrong if the file could not be loaded
        prepare(resolve(config.value), overwrite=values.overwrite, download=values.download)
    except (flags.Error, ConfigError, DataError, TokenizerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
