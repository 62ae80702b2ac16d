"""Decodes lines of text: `python -m janus_jax.decode --checkpoint=DIR --mode=nar --passes=4 < in.txt > out.txt`.

As many lines come out as went in, in their order. Exit status: 0, or 2 when the input cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from tqdm import tqdm

from janus_jax import parallel
from janus_jax.config import Mode
from janus_jax.decode import STOPS, Generator
from janus_jax.decode.files import read_lines, write_lines


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of a search; one that is left out comes from the checkpoint's own configuration."""
    parser.add_argument("--mode", choices=get_args(Mode), help="autoregressive (beam search) or not (mask-predict)")
    parser.add_argument("--beam", type=int, help="ar: hypotheses a sentence; 1 is greedy")
    parser.add_argument(
        "--lenpen", type=float, help="ar: exponent of the length that sums of log-probabilities are divided by"
    )
    parser.add_argument("--stop", choices=tuple(STOPS), help="ar: when a sentence is finished")
    parser.add_argument("--passes", type=int, help="nar: decoder passes (the released iteration n is n+1 passes)")
    parser.add_argument("--length_beam", type=int, help="nar: target lengths tried a sentence")
    parser.add_argument(
        "--rules", choices=("sound", "released"), help="released: the released decoders' rules, faults included"
    )
    parser.add_argument("--max_length_a", type=float, help="ar: at most a * source tokens + b target tokens")
    parser.add_argument("--max_length_b", type=int)
    parser.add_argument("--batch_tokens", type=int, help="sentences * hypotheses * padded length of a batch")


SEARCH = ("mode beam lenpen stop passes length_beam rules max_length_a max_length_b batch_tokens").split()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the door with these arguments (default: the process's own) and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m janus_jax.decode", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="a step directory, or a directory of checkpoints (the latest)"
    )
    parser.add_argument("--input", help="file of source lines; default: standard input")
    parser.add_argument("--output", help="file to write; default: standard output")
    parser.add_argument("--scores", action="store_true", help="write score, tab, text")
    add_search_arguments(parser)
    args = parser.parse_args(argv)
    parallel.start()
    settings = {name: getattr(args, name) for name in SEARCH}
    try:
        generator = Generator.from_checkpoint(args.checkpoint)
        lines = read_lines(args.input)
        with tqdm(total=len(lines), unit="line", disable=not sys.stderr.isatty()) as bar:
            outputs = generator.generate(lines, progress=bar.update, **settings)
        write_lines(args.output, (f"{o.score:.4f}\t{o.text}" if args.scores else o.text for o in outputs))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
