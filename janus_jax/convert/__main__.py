"""Conversions: `python -m janus_jax.convert average --checkpoint=runs/x --last=3 --output=runs/x/average`.

`average` writes a checkpoint whose parameters are the mean of a run's last ones; decoding and evaluation take it like any
other.
"""

import argparse
import sys
from collections.abc import Sequence

from janus_jax import checkpoint


def average(run: str, last: int, output: str) -> None:
    """Averages the newest `last` checkpoints of a run (their moving averages where they have one) into `output`.

    Raises:
      CheckpointError: fewer checkpoints than asked for, or `output` exists.
    """
    found = checkpoint.step_directories(run)
    if last < 1 or len(found) < last:
        raise checkpoint.CheckpointError(
            f"{run}: holds {len(found)} complete checkpoints, not the {last} to average; lower --last, or keep more with "
            "train.keep_last"
        )
    loaded = [checkpoint.load(path) for path in found[-last:]]
    newest = loaded[-1]
    about = {"step": newest.step, "made_by": "average", "of_steps": [one.step for one in loaded]}
    mean = checkpoint.average([one.params for one in loaded])
    checkpoint.write(output, mean, newest.config, newest.tokenizer, about)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the door with these arguments (default: the process's own) and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m janus_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    averaging = commands.add_parser("average", help="mean of a run's last checkpoints")
    averaging.add_argument("--checkpoint", required=True, help="the run's work directory")
    averaging.add_argument("--last", type=int, default=3, help="how many of the newest checkpoints")
    averaging.add_argument("--output", required=True, help="directory to write; must not exist")
    args = parser.parse_args(argv)
    try:
        average(args.checkpoint, args.last, args.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
