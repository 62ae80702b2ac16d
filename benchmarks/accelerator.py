"""What an accelerator does, in one command that fits in nine minutes: training steps, decoding, speculation.

    python benchmarks/accelerator.py [--output=accelerator.json] [--minutes=9]
    python benchmarks/accelerator.py --checkpoint=RUN --source=TEST.de    # also speculation, with a trained model

Each part is a run of another benchmark in a process of its own: in bfloat16 the step of BART-base (AR alone, and joint)
with its share of a matrix product's rate and the device's peak memory; in bfloat16 AR, mask-predict and CTC at batch 1, 32
and 256; and the drafters of a trained model beside its greedy search. The file is written after each part, so that finished
parts are kept if the time ends. A part that fails, or for which no time is left, says so in the file.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from janus_jax import files
from janus_jax.command_line import ArgumentParser

ROOT = Path(__file__).resolve().parents[1]
MODES = (
    "ar:beam=1;ar:beam=5;nar:passes=1,length_beam=1;nar:passes=4,length_beam=3;nar:passes=10,length_beam=3;ctc:beam=1;"
    "ctc:beam=5;speculative;oracle"
)
_LEAST_SECONDS = 20.0  # a part is not begun with less


def parts(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each part."""
    step = ["--json", "--dtype=bfloat16", f"--preset={args.preset}", f"--length={args.length}"]
    commands = {
        "train_step": [
            "benchmarks/train_step.py", *step, f"--sentences={args.sentences}", "--objectives=ar,janus", "--runs=10",
        ],
        "decode": [
            "benchmarks/decode.py", "--json", "--dtype=bfloat16", f"--batches={args.batches}", f"--modes={args.modes}",
        ],
    }  # fmt: skip
    if args.checkpoint:
        commands["speculation"] = [
            "benchmarks/speculation.py", "--json", f"--checkpoint={args.checkpoint}", f"--source={args.source}",
            "--batches=1,32", f"--sentences={args.lines}",
        ]  # fmt: skip
    return commands


def run_part(command: Sequence[str], seconds: float) -> dict[str, Any]:
    """The figures of a benchmark, the last line of its output; or `error`, with the end of what it wrote.

    Args:
      command: arguments of Python.
      seconds: after which it is ended.
    """
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        written = error.stdout.decode(errors="replace") if error.stdout else ""
        return {"error": f"ended after {seconds:.0f} s", "output": written.splitlines()}
    lines = done.stdout.splitlines()
    if done.returncode:
        return {"error": f"exit status {done.returncode}", "output": done.stderr.splitlines()[-5:]}
    return {**json.loads(lines[-1]), "output": lines[:-1], "wall_seconds": time.monotonic() - start}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; returns the exit status: 0, or 1 if one of them has no figures."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("accelerator.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="of all parts together")
    parser.add_argument("--checkpoint", help="a trained model, for speculation")
    parser.add_argument("--source", help="with --checkpoint: sentences to decode")
    parser.add_argument("--lines", type=int, default=200, help="with --checkpoint: how many of them")
    parser.add_argument("--preset", default="bart_base", help="architecture of the training steps")
    parser.add_argument("--sentences", type=int, default=32, help="blocks of a training step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a block")
    parser.add_argument("--batches", default="1,32,256", help="of decoding")
    parser.add_argument("--modes", default=MODES, help="of decoding")
    args = parser.parse_args(argv)
    if bool(args.checkpoint) != bool(args.source):
        parser.error("--checkpoint and --source go together")
    if args.checkpoint and not (Path(args.checkpoint).exists() and Path(args.source).exists()):
        parser.error(f"--checkpoint={args.checkpoint} --source={args.source}: there is no such run or file")
    if not args.output.absolute().parent.is_dir():
        parser.error(f"--output={args.output}: there is no such folder")
    args.checkpoint, args.source = (path and str(Path(path).resolve()) for path in (args.checkpoint, args.source))
    end = time.monotonic() + 60 * args.minutes
    figures: dict[str, Any] = {}
    for name, command in parts(args).items():
        left = end - time.monotonic()
        figures[name] = run_part(command, left) if left >= _LEAST_SECONDS else {"error": "no time was left"}
        files.write_bytes(args.output, json.dumps(figures, indent=1).encode())
        print(f"{name}: python {' '.join(command)}")
        print("\n".join(f"  {line}" for line in (*figures[name].get("output", ()), figures[name].get("error", "done"))))
    print(f"wrote {args.output}")
    return int(any("error" in part for part in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
