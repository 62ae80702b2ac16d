"""Models in and out, and averages.

    python -m janus_jax.convert import --from=fairseq --model=checkpoint_best.pt --tokenizer=dict.txt --output=runs/released
    python -m janus_jax.convert import --from=hf --model=bart-base --output=runs/bart_base
    python -m janus_jax.convert export --checkpoint=runs/x --format=hf --output=exports/x
    python -m janus_jax.convert average --checkpoint=runs/x --last=3 --output=runs/x/average

`import` writes a janus_jax checkpoint that training (init_from), decoding and evaluation take like any other, and tells what
became of every tensor. `export` writes what transformers (hf, bart), CTranslate2 (bart), fairseq, or anything that reads
safetensors loads. `average` writes a checkpoint whose parameters are the mean of a run's last ones.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from janus_jax import checkpoint
from janus_jax.convert.exporting import FORMATS, export_model
from janus_jax.convert.importing import SOURCES, Request, import_model


def average(run: str, last: int, output: str | Path) -> None:
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
    args = _parser().parse_args(argv)
    try:
        if args.command == "average":
            average(args.checkpoint, args.last, args.output)
        elif args.command == "export":
            print(export_model(args.checkpoint, args.format, args.output))
        else:
            request = Request(
                source=args.source,
                model=args.model,
                output=args.output,
                tokenizer=args.tokenizer,
                heads=args.heads,
                max_positions=args.max_positions,
                ignore=args.ignore,
            )
            print(import_model(request))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m janus_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    output = {"required": True, "type": Path, "help": "directory to write; must not exist"}

    importing = commands.add_parser("import", help="another program's model, or an export, as a checkpoint")
    importing.add_argument("--from", dest="source", choices=SOURCES, required=True, help="whose model it is")
    importing.add_argument("--model", type=Path, required=True, help="fairseq: the .pt file; else the directory")
    importing.add_argument(
        "--tokenizer",
        type=Path,
        help="SentencePiece model, tokenizer.json, dict.txt, or a folder; default: that of --model",
    )
    importing.add_argument("--heads", type=int, help="attention heads, where the file does not say")
    importing.add_argument(
        "--max_positions", type=int, default=0, help="cut the position tables to so many; default: all"
    )
    importing.add_argument(
        "--ignore", default="", metavar="REGEX", help="leave out tensors in whose names this is found"
    )
    importing.add_argument("--output", **output)

    exporting = commands.add_parser("export", help="a checkpoint in another program's form")
    exporting.add_argument("--checkpoint", required=True, help="a step directory, or a run's work directory")
    exporting.add_argument("--format", choices=tuple(FORMATS), required=True, help="the form")
    exporting.add_argument("--output", **output)

    averaging = commands.add_parser("average", help="mean of a run's last checkpoints")
    averaging.add_argument("--checkpoint", required=True, help="the run's work directory")
    averaging.add_argument("--last", type=int, default=3, help="how many of the newest checkpoints")
    averaging.add_argument("--output", **output)
    return parser


if __name__ == "__main__":
    sys.exit(main())
