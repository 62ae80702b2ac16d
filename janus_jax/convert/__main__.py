"""Imports models, exports checkpoints, and averages checkpoints.

    python -m janus_jax.convert import --from=fairseq --model=best.pt --tokenizer=dict.txt --output=runs/best
    python -m janus_jax.convert import --from=hf --model=bart-base --output=runs/bart_base
    python -m janus_jax.convert export --checkpoint=runs/x --format=hf --output=exports/x
    python -m janus_jax.convert average --checkpoint=runs/x --last=3 --output=runs/x/average

`import` writes a janus_jax checkpoint that training (init_from), decoding and evaluation read like any other, and
reports what became of every tensor. `export` writes files that transformers (hf, bart), CTranslate2 (bart), fairseq, or
any program that reads safetensors can load. `average` writes a checkpoint whose parameters are the mean of the last
checkpoints of a run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from janus_jax import checkpoint, command_line
from janus_jax.convert import files
from janus_jax.convert.exporting import FORMATS, export_model
from janus_jax.convert.hub import CardOptions
from janus_jax.convert.importing import SOURCES, ImportRequest, import_model


def average(run: str, last: int, output: str | Path) -> None:
    """Writes the average of the newest `last` checkpoints of a run (of their moving averages where they have them) to
    `output`.

    Raises:
      CheckpointError: the run has fewer than `last` checkpoints.
      ConvertError: `output` exists, or cannot be written.
    """
    files.refuse_existing(output)
    checkpoint.find(run)  # reports a missing directory
    directories = checkpoint.step_directories(run)
    if last < 1 or len(directories) < last:
        raise checkpoint.CheckpointError(
            f"{run}: holds {len(directories)} complete checkpoints, but --last={last}; lower --last, or keep more with "
            "train.keep_last"
        )
    loaded = [checkpoint.load(path) for path in directories[-last:]]
    newest = loaded[-1]
    about = checkpoint.origin(newest.about)
    about |= {"step": newest.step, "made_by": "average", "of_steps": [one.step for one in loaded]}
    mean = checkpoint.average([one.params for one in loaded])
    checkpoint.write(output, mean, newest.config, newest.tokenizer, about)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (default: those of the process) and returns its exit status."""
    args = _parser().parse_args(argv)
    return command_line.report_mistakes(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if args.command == "average":
        average(args.checkpoint, args.last, args.output)
    elif args.command == "export":
        options = CardOptions(
            license=args.license,
            datasets=tuple(args.datasets.split(",")) if args.datasets else (),
            repo_id=args.repo_id,
            scores=args.scores,
        )
        chosen = options if options != CardOptions() else None
        print(export_model(args.checkpoint, args.format, args.output, chosen))
    else:
        request = ImportRequest(
            source=args.source,
            model=args.model,
            output=args.output,
            tokenizer=args.tokenizer,
            heads=args.heads,
            max_positions=args.max_positions,
            ignore=args.ignore,
        )
        print(import_model(request))
    print(f"wrote {args.output}")


def _parser() -> command_line.ArgumentParser:
    parser = command_line.ArgumentParser(
        prog="python -m janus_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    output = {"required": True, "type": Path, "help": "directory to write; must not exist"}

    importing = commands.add_parser("import", help="make a checkpoint of another program's model or of an export")
    importing.add_argument(
        "--from", dest="source", choices=SOURCES, required=True, help="the program or format that the model comes from"
    )
    importing.add_argument("--model", type=Path, required=True, help="fairseq: the .pt file; otherwise the directory")
    importing.add_argument(
        "--tokenizer",
        type=Path,
        help="SentencePiece model, tokenizer.json, dict.txt, or a directory; default: the tokenizer beside --model",
    )
    importing.add_argument("--heads", type=int, help="number of attention heads, needed if the file does not record it")
    importing.add_argument(
        "--max_positions", type=int, default=0, help="keep this many positions of the position tables; default: all"
    )
    importing.add_argument("--ignore", default="", metavar="REGEX", help="leave out tensors whose names match")
    importing.add_argument("--output", **output)

    exporting = commands.add_parser("export", help="write a checkpoint in another program's format")
    exporting.add_argument("--checkpoint", required=True, help="a step directory, or a run's work directory")
    exporting.add_argument("--format", choices=tuple(FORMATS), required=True, help="the format to write")
    exporting.add_argument("--output", **output)
    card = exporting.add_argument_group("for the model card (README.md) of the format hf")
    card.add_argument(
        "--license",
        default="",
        help="the Hub's name of the weights' license, as cc-by-4.0; default: the card says that none is chosen",
    )
    card.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help="JSON of python -m janus_jax.evaluate; test.json holds the scores of the text 'test'",
    )
    card.add_argument(
        "--datasets", default="", metavar="ID,ID", help="the Hub's names of the training data, as wmt/wmt16"
    )
    card.add_argument(
        "--repo_id",
        "--repo-id",
        default="",
        metavar="OWNER/NAME",
        help="name that the model gets on the Hub, for the card's code",
    )

    averaging = commands.add_parser("average", help="average the last checkpoints of a run")
    averaging.add_argument("--checkpoint", required=True, help="the work directory of the run")
    averaging.add_argument("--last", type=int, default=3, help="number of newest checkpoints to average")
    averaging.add_argument("--output", **output)
    return parser


if __name__ == "__main__":
    sys.exit(main())
