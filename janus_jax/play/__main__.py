"""Opens a page in the browser that decodes a sentence by every mode of a model: `python -m janus_jax.play --checkpoint=DIR`.

The page shows the outputs beside each other with their times, and what the passes of each mode looked like. It needs Gradio
(requirements-play.txt). Exit status: 0, or 2 if the model or a flag cannot be used.
"""

import argparse
import errno
import importlib.util
import logging
import socket
import sys
from collections.abc import Sequence

import numpy as np

from janus_jax import checkpoint, parallel, text
from janus_jax.command_line import ArgumentParser, report_mistakes
from janus_jax.data import Prepared
from janus_jax.decode import Generator
from janus_jax.decode.batching import bare
from janus_jax.decode.io import read_lines
from janus_jax.play.playground import Playground, examples

_EXAMPLES = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line with these arguments (default: the process's own) and returns its exit status."""
    parser = ArgumentParser(prog="python -m janus_jax.play", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="a step directory, or a directory of checkpoints (the latest)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind to (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--examples", help="file of sentences to choose from; default: the test split of the model's data"
    )
    parser.add_argument(
        "--rate", type=int, default=30, help="calls a minute from one address; 0: no limit (default: 30)"
    )
    args = parser.parse_args(argv)
    if args.rate < 0:
        parser.error(f"--rate={args.rate}: must be 0 or more")
    if args.port is not None and not 0 < args.port < 65536:
        parser.error(f"--port={args.port}: must be from 1 to 65535")
    return report_mistakes(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(
            "the playground needs Gradio: pip install -r requirements-play.txt, or outside a checkout "
            'pip install "janus_jax[play]"'
        )
    _check_address(args.host, args.port)
    lines = read_lines(args.examples) if args.examples else None
    parallel.start(alone=True)
    playground = Playground(Generator.from_checkpoint(args.checkpoint))
    if not playground.trials():
        raise ValueError(f"--checkpoint={args.checkpoint}: this model was trained for no mode that the page shows")
    sentences = examples(_test_sources(args.checkpoint) if lines is None else lines, _EXAMPLES, playground)
    from janus_jax.play import page  # Gradio's import takes seconds

    if sentences:
        print("compiling: the first sentence is decoded by every mode ...", file=sys.stderr)
        for trial in playground.trials():
            playground.decode(sentences[0], trial)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio looks for its own server
    blocks = page.build(playground, sentences, rate=args.rate)
    address = page.launch(blocks, host=args.host, port=args.port)
    print(f"open {address} in a browser; Ctrl+C ends the server", file=sys.stderr)
    blocks.block_thread()


def _check_address(host: str, port: int | None) -> None:
    """Raises ValueError if the server cannot listen there, before the model is loaded."""
    try:
        with socket.create_server((host, port or 0)):
            pass
    except OSError as error:
        of_port = port and error.errno in (errno.EADDRINUSE, errno.EACCES)
        where = f"--port={port}" if of_port else f"--host={host}"
        raise ValueError(f"{where}: cannot listen on {host} ({error.strerror or error}); name another one") from error


def _test_sources(path: str) -> list[str]:
    """Source sentences of the test split that the model's data has; none where the prepared data is not at hand."""
    config = checkpoint.config(path)
    try:
        prepared = Prepared.open(config.data.prepared)
    except (ValueError, OSError):
        print(
            f"no examples: {config.data.prepared} holds no prepared data; name a file with --examples", file=sys.stderr
        )
        return []
    split = next((prepared.splits[name] for name in ("test", "valid") if len(prepared.splits.get(name, ()))), None)
    if split is None or "source" not in split.lengths:
        return []
    tokenizer = text.load(prepared.tokenizer_bytes)
    rows = split.columns(np.arange(min(len(split), 40)))
    return tokenizer.decode_batch([bare(row["source"], tokenizer.specials) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
