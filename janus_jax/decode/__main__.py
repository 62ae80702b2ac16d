"""Decodes sentences: `python -m janus_jax.decode --checkpoint=DIR --mode=nar --passes=4 < in.txt > out.txt`.

Writes one line for each input line, in order (with --nbest one line for each output; with --format=jsonl one object for each
input). With --output a killed run resumes when the same command is given again. Exit status: 0, or 2 if the input cannot be
used.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

import jax
from tqdm import tqdm

from janus_jax import checkpoint, parallel
from janus_jax.command_line import ArgumentParser, report_mistakes
from janus_jax.config import DecodeConfig
from janus_jax.data import Prepared, Readers
from janus_jax.decode import Generator, io
from janus_jax.decode.batching import bare
from janus_jax.decode.distill import distill
from janus_jax.decode.gaps import with_fillings, with_gaps
from janus_jax.decode.keywords import SHARED, places
from janus_jax.decode.modes import MODES
from janus_jax.decode.types import Output


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting of each mode, described by its field; one that is left out comes from the checkpoint."""
    for name, (kind, text) in _flags().items():
        if kind is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=text)
        elif get_args(kind):
            parser.add_argument(f"--{name}", choices=get_args(kind), help=text)
        else:
            parser.add_argument(f"--{name}", type=kind, help=text)


def _flags() -> dict[str, tuple[Any, str]]:
    """The type and the help of each flag; modes that share a name share the flag."""
    hints, fields = get_type_hints(DecodeConfig), {f.name: f for f in dataclasses.fields(DecodeConfig)}
    flags = {name: (hints[name], _described(fields[name])) for name in SHARED}
    helps: dict[str, dict[str, list[str]]] = {}  # flag -> help -> modes
    kinds: dict[str, Any] = {}
    for mode, entry in MODES.items():
        for f in dataclasses.fields(entry.settings):
            readers = [other for other in MODES if other != mode and places(other).get(f.name) == (mode, f.name)]
            helps.setdefault(f.name, {}).setdefault(_described(f), []).extend([mode, *readers])
            kinds[f.name] = get_type_hints(entry.settings)[f.name]
    for name, by_text in helps.items():
        flags[name] = (kinds[name], " ".join(f"[{', '.join(modes)}] {text}" for text, modes in by_text.items()))
    return flags


def _described(field: dataclasses.Field) -> str:
    """The help of a field with its unit, range and default, as argparse takes it."""
    notes = [note for note in (field.metadata["unit"], str(field.metadata["range"])) if note]
    return f"{field.metadata['help']} ({', '.join([*notes, f'default: {field.default}'])})".replace("%", "%%")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line with these arguments (default: the process's own) and returns its exit status."""
    parser = ArgumentParser(prog="python -m janus_jax.decode", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="a step directory, or a directory of checkpoints (the latest)"
    )
    parser.add_argument("--input", help="file to read; default: standard input")
    parser.add_argument("--output", help="file to write; default: standard output")
    parser.add_argument(
        "--format", choices=io.FORMATS, default="lines",
        help="lines (default): sources; tsv: source TAB prefix (ar) or target with <mask> gaps (nar, infill); jsonl: objects with source, prefix or "
        "target; with infill, the texts of a target's gaps, these are scored",
    )  # fmt: skip
    parser.add_argument(
        "--devices", type=int, help="share the sentences of a batch; default: all accelerators, or one CPU"
    )
    parser.add_argument("--scores", action="store_true", help="write score, tab, text")
    parser.add_argument(
        "--trace", help="nar, speculative: also write there, a JSON line a sentence, the tokens of each pass"
    )
    parser.add_argument("--distill", help="prepared dataset; its translated training set is written into --output")
    parser.add_argument(
        "--distill_readers", choices=get_args(Readers),
        help="with --distill: rows that read the translations. all (default): all rows. parallel: all rows but AR's, which keep "
        "the original targets. both: as parallel, and each pair a second time with its original target for all rows",
    )  # fmt: skip
    add_search_arguments(
        parser.add_argument_group(
            "search",
            "Settings of the chosen --mode. Left out: the checkpoint's own value, or the default where it has none.",
        )
    )
    args = parser.parse_args(argv)
    _check_flags(parser, args)
    return report_mistakes(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    _check_files(args)
    parallel.start(alone=True)
    found = checkpoint.find(args.checkpoint)
    generator = Generator.from_checkpoint(found, _devices(args.devices))
    keywords = {name: getattr(args, name) for name in _flags() if getattr(args, name) is not None}
    if args.distill is not None:
        keywords["nbest"] = 1  # a pair has one target; the checkpoint's own settings may ask for more
    decode = generator.settings(keywords)
    if args.distill is not None:
        _distill(generator, args, str(found), decode, keywords)
    else:
        _decode_file(generator, args, decode, keywords)


def _check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.distill_readers and not args.distill:
        parser.error("--distill_readers goes with --distill=PREPARED")
    if args.distill is not None:
        others = ("input", "trace", "scores", "format")
        given = [f"--{name}" for name in others if getattr(args, name) != parser.get_default(name)]
        given += ["--nbest"] if args.nbest not in (None, 1) else []
        if given or not args.output:
            parser.error(
                f"--distill=PREPARED needs --output=DIRECTORY, and takes no {', '.join(given or ('--input', '--trace'))}"
            )


def _check_files(args: argparse.Namespace) -> None:
    """Raises what is wrong with the files of the command line before any long work."""
    if args.distill is None:
        io.check_outputs(
            {"--input": None if args.input == "-" else args.input},
            # Both on standard output would be mixed up.
            {"--output": args.output if args.output is not None or args.trace != "-" else "-", "--trace": args.trace},
        )


def _decode_file(
    generator: Generator, args: argparse.Namespace, decode: DecodeConfig, keywords: dict[str, Any]
) -> None:
    """Reads, decodes and writes the files of the command line."""
    mode = MODES[decode.mode]
    # The keyword of the texts beside the sources.
    name = next((name for name in ("prefixes", "targets") if name in mode.inputs), "")
    if args.format == "lines" and name in mode.required:
        raise ValueError(
            f"--mode={decode.mode}: lines hold no {name}; give --format=tsv (source TAB {name[:-1]}) or jsonl"
        )
    if args.trace and not mode.traces:
        modes = " or ".join(other for other, entry in MODES.items() if entry.traces)
        raise ValueError(f"--trace: mode {decode.mode} has no passes to record; use --mode={modes}")
    items = io.parse(io.read_lines(args.input), args.format, args.input or "standard input", decode.mode)
    for start in range(0, len(items), io.CHUNK):
        _check_items(generator, start, items[start : start + io.CHUNK], name, bool(args.trace), keywords)
    # The checkpoint by its content: another one may have taken its place when a killed run resumes, which needs --output.
    signature = [
        dataclasses.asdict(decode),
        generator.fingerprint() if args.output else "",
        args.format,
        args.scores,
        bool(args.trace),
    ]
    with tqdm(total=len(items), unit="line", disable=not sys.stderr.isatty()) as bar:

        def records(start: int, part: Sequence[io.Item]) -> list[str]:
            outputs = _outputs(generator, start, part, name, bar.update, bool(args.trace), keywords)
            if args.trace:
                traces = (
                    io.render_trace(n, *pair) for n, pair in enumerate(zip(part, outputs, strict=True), start + 1)
                )
                io.write_lines(args.trace, traces)
            return [
                io.render(number, item, output, args.format, scores=args.scores, nbest=decode.nbest)
                for number, (item, output) in enumerate(zip(part, outputs, strict=True), start + 1)
            ]

        if args.trace and not items:
            io.write_lines(args.trace, [])
        # A trace is written in one chunk: it is meant for small inputs.
        chunk = max(len(items), 1) if args.trace else io.CHUNK
        io.write_resumable(items, args.output, records, signature=signature, chunk=chunk, skipped=bar.update)


def _devices(count: int | None) -> list[jax.Device] | None:
    if count is None:
        return None
    if not 1 <= count <= len(jax.local_devices()):
        raise ValueError(f"--devices={count}: there are {len(jax.local_devices())} here")
    return jax.local_devices()[:count]


def _check_items(
    generator: Generator, start: int, part: Sequence[io.Item], name: str, trace: bool, keywords: dict[str, Any]
) -> None:
    """Raises what is wrong with a part of the sentences; nothing is decoded.

    Args:
      generator: reads them.
      start: sentences before the part.
      part: of the sentences.
      name: the keyword of their texts.
      trace: whether passes are to be recorded.
      keywords: settings of the search.
    """
    tokenizer, special = generator.tokenizer, generator.net.specials
    texts = generator.spaced(name, [item.text or "" for item in part])
    if part[0].infill is not None:
        if trace:
            raise ValueError("--trace: scoring texts has no passes to record")
        infills = [generator.spaced("infills", item.infill or ()) for item in part]
        with_fillings(texts, infills, generator.max_target_length - 2, tokenizer, special.mask, start + 1)
        lines = [item.source for item in part]
        for number, ids in enumerate(generator.encoded(lines), start + 1):
            if not bare(ids, special):
                raise ValueError(f"line {number}: an empty source, for which nothing can be scored")
    elif name == "targets" and part[0].text is not None:
        with_gaps(texts, tokenizer, special.mask, start + 1)
    else:
        generator.check([item.source for item in part], first_line=start, **keywords)


def _outputs(
    generator: Generator,
    start: int,
    part: Sequence[io.Item],
    name: str,
    progress: Callable[[int], Any],
    trace: bool,
    keywords: dict[str, Any],
) -> list[Output]:
    """The outputs of a chunk; `start` sentences stand before it, and `name` is the keyword of their texts."""
    lines = [item.source for item in part]
    if part[0].infill is not None:
        targets, infills = [item.text or "" for item in part], [item.infill or () for item in part]
        return generator.score_infills(lines, targets, infills, first_line=start, progress=progress, **keywords)
    texts = {} if part[0].text is None else {name: [item.text for item in part]}
    return generator.generate(lines, progress=progress, trace=trace, first_line=start, **texts, **keywords)


def _distill(
    generator: Generator, args: argparse.Namespace, found: str, decode: DecodeConfig, keywords: dict[str, Any]
) -> None:
    if required := MODES[decode.mode].required:
        modes = ", ".join(name for name, mode in MODES.items() if not mode.required)
        raise ValueError(f"--distill: mode {decode.mode} needs {' and '.join(required)}; use one of --mode={modes}")
    total = len(Prepared.open(args.distill).split("train"))
    with tqdm(total=total, unit="line", disable=not sys.stderr.isatty()) as bar:
        report = distill(
            generator,
            args.distill,
            args.output,
            checkpoint=found,
            progress=bar.update,
            readers=args.distill_readers or "all",
            **keywords,
        )
    part = report["splits"]["train"]
    lengths = ", ".join(
        f"{part['tokens'][column] / part['kept']:.1f} tokens of {column}" for column in report["columns"]
    )
    print(f"wrote {args.output}: {part['kept']} pairs; a pair has {lengths}")
    if empty := report["distilled"]["empty_outputs"]:
        print(f"{empty} outputs were empty; these pairs keep their original targets")


if __name__ == "__main__":
    sys.exit(main())
