"""Decodes sentences: `python -m janus_jax.decode --checkpoint=DIR --mode=nar --passes=4 < in.txt > out.txt`.

As many lines come out as went in, in their order (with --nbest as many a line as there are). With --output a run that was
killed goes on where it stood when the same command is given again. Exit status: 0, or 2 when the input cannot be used.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

import jax
from tqdm import tqdm

from janus_jax import checkpoint, parallel
from janus_jax.config import DecodeConfig
from janus_jax.data import Prepared
from janus_jax.decode import Generator, jobs
from janus_jax.decode.distill import distill
from janus_jax.decode.files import read_lines, write_lines
from janus_jax.decode.output import Output

_KEYWORD = {"prefix": "prefixes", "target": "targets"}
_HELP = {
    "mode": "ar: beam search, greedy search or sampling; nar: mask-predict; ctc: one pass, best path or prefix beam search; "
    "speculative: greedy search's output, drafted by nar or ctc; infill: the gaps of a given target, left to right by the auxiliary rows, drafted by nar",
    "nbest": "outputs a sentence, a line each: number, score, text",
    "beam": "ar, ctc: hypotheses a sentence; 1 is greedy, or the best path",
    "lenpen": "ar: exponent of the length that sums of log-probabilities are divided by",
    "stop": "ar: when a sentence is finished",
    "rules": "released: the released decoders' rules, faults included",
    "max_length_a": "ar: at most a * source tokens + b target tokens",
    "max_length_b": "",
    "min_length": "ar: target tokens at least",
    "no_repeat_ngram": "ar: no n-gram of this size twice",
    "sample": "ar: draw tokens at random instead of searching",
    "temperature": "sample: divides the logits",
    "top_k": "sample: of the k likeliest tokens only",
    "top_p": "sample: of the likeliest tokens that together have this probability",
    "seed": "sample: another seed draws other tokens",
    "passes": "nar: decoder passes (the released iteration n is n+1 passes)",
    "length_beam": "nar: target lengths tried a sentence",
    "lengths": "nar: the most probable lengths, or those around the most probable",
    "mask_schedule": "nar: how many slots are masked again after a pass",
    "early_stop": "nar: stop when a pass changes nothing",
    "merge_repeats": "nar: drop a token right after itself",
    "rerank": "nar, ctc: the AR half chooses among the candidates",
    "blank_penalty": "ctc: taken from the blank's log-probability, against outputs that are too short",
    "ctc_tokens": "ctc: so many of a row's likeliest tokens enter the beam search",
    "draft": "speculative, infill: make drafts where they pay on this machine, always, or never",
    "draft_from": "speculative: the half that drafts; auto: CTC where the model has it",
    "draft_passes": "speculative, infill: passes of mask-predict for a draft",
    "draft_lengths": "speculative: drafts of so many lengths are verified side by side",
    "accept_top": "speculative, infill: accept a drafted token among the so many best (above 1: not lossless, and outputs depend on their batch)",
    "accept_gap": "speculative, infill: ... at most so much less log-probable than the best (above 0: not lossless)",
    "batch_tokens": "sentences * hypotheses * padded length of a batch",
}


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of a search; one that is left out comes from the checkpoint's own configuration."""
    hints = get_type_hints(DecodeConfig)
    for field in dataclasses.fields(DecodeConfig):
        name, kind, text = f"--{field.name}", hints[field.name], _HELP[field.name]
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif get_args(kind):
            parser.add_argument(name, choices=get_args(kind), help=text)
        else:
            parser.add_argument(name, type=kind, help=text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the door with these arguments (default: the process's own) and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m janus_jax.decode", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="a step directory, or a directory of checkpoints (the latest)"
    )
    parser.add_argument("--input", help="file to read; default: standard input")
    parser.add_argument("--output", help="file to write; default: standard output")
    parser.add_argument(
        "--format", choices=jobs.FORMATS, default="lines",
        help="tsv: source TAB prefix (ar) or target with <mask> gaps (nar, infill); jsonl: objects with source, prefix or "
        "target; with infill, the texts of a target's gaps, these are scored",
    )  # fmt: skip
    parser.add_argument(
        "--devices", type=int, help="share the sentences of a batch; default: all accelerators, or one CPU"
    )
    parser.add_argument("--scores", action="store_true", help="write score, tab, text")
    parser.add_argument("--trace", help="nar: also write there, a JSON line a sentence, what each pass did")
    parser.add_argument("--distill", help="prepared dataset whose training targets are translated anew into --output")
    add_search_arguments(parser)
    args = parser.parse_args(argv)
    parallel.start()
    try:
        generator = Generator.from_checkpoint(args.checkpoint, _devices(args.devices))
        decode = generator.settings(
            {field.name: getattr(args, field.name) for field in dataclasses.fields(DecodeConfig)}
        )
        if args.distill:
            return _distill(parser, generator, args, dataclasses.asdict(decode))
        _decode_file(generator, args, decode)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _decode_file(generator: Generator, args: argparse.Namespace, decode: DecodeConfig) -> None:
    """Reads, decodes and writes what the arguments name."""
    key = "target" if decode.mode in ("nar", "infill") else "prefix"
    infill = decode.mode == "infill"
    if infill and args.format == "lines":
        raise ValueError(
            "--mode=infill: lines hold no targets; give --format=tsv (source TAB target with <mask>) or jsonl"
        )
    items = jobs.parse(read_lines(args.input), args.format, args.input or "standard input", key, scored=infill)
    # A directory's newest checkpoint may be another one by the time a killed run goes on.
    signature = [
        dataclasses.asdict(decode),
        str(checkpoint.find(args.checkpoint)),
        args.format,
        args.scores,
        bool(args.trace),
    ]
    with tqdm(total=len(items), unit="line", disable=not sys.stderr.isatty()) as bar:

        def records(start: int, part: Sequence[jobs.Item]) -> list[str]:
            outputs = _outputs(generator, start, part, key, bar.update, bool(args.trace), dataclasses.asdict(decode))
            if args.trace:
                traces = (
                    jobs.render_trace(n, *pair) for n, pair in enumerate(zip(part, outputs, strict=True), start + 1)
                )
                write_lines(args.trace, traces)
            return [
                jobs.render(number, item, output, args.format, scores=args.scores, nbest=decode.nbest)
                for number, (item, output) in enumerate(zip(part, outputs, strict=True), start + 1)
            ]

        # A trace is written at once: it is for looking at, not for large inputs.
        chunk = max(len(items), 1) if args.trace else jobs.CHUNK
        jobs.run(items, args.output, records, signature=signature, chunk=chunk, skipped=bar.update)


def _devices(count: int | None) -> list[jax.Device] | None:
    if count is None:
        return None
    if not 1 <= count <= len(jax.local_devices()):
        raise ValueError(f"--devices={count}: there are {len(jax.local_devices())} here")
    return jax.local_devices()[:count]


def _outputs(
    generator: Generator,
    start: int,
    part: Sequence[jobs.Item],
    key: str,
    progress: Callable[[int], Any],
    trace: bool,
    settings: dict[str, Any],
) -> list[Output]:
    """What becomes of a chunk whose first sentence is number `start`."""
    lines = [item.source for item in part]
    if part and part[0].infill is not None:
        if trace:
            raise ValueError("--trace: scoring given texts has no passes to look at")
        targets, infills = [item.given or "" for item in part], [item.infill or () for item in part]
        return generator.score_infills(lines, targets, infills, first_line=start, progress=progress, **settings)
    given = {} if part[0].given is None else {_KEYWORD[key]: [item.given for item in part]}
    return generator.generate(lines, progress=progress, trace=trace, first_line=start, **given, **settings)


def _distill(
    parser: argparse.ArgumentParser, generator: Generator, args: argparse.Namespace, settings: dict[str, Any]
) -> int:
    if not args.output or args.input or args.trace:
        parser.error("--distill=PREPARED needs --output=DIRECTORY, and takes no --input and no --trace")
    if settings["mode"] == "infill":
        parser.error("--distill: mode infill completes given targets; use --mode=ar, nar or speculative")
    total = len(Prepared.open(args.distill).split("train"))
    with tqdm(total=total, unit="line", disable=not sys.stderr.isatty()) as bar:
        report = distill(
            generator,
            args.distill,
            args.output,
            checkpoint=str(checkpoint.find(args.checkpoint)),
            progress=bar.update,
            **settings,
        )
    part = report["splits"]["train"]
    print(
        f"wrote {args.output}: {part['kept']} pairs, {part['tokens']['target'] / part['kept']:.1f} target tokens each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
