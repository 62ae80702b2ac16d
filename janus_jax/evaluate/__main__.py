"""Scores files of lines, or decodes with a checkpoint and scores the output.

    python -m janus_jax.evaluate --hypotheses=out.en --references=test.en
    python -m janus_jax.evaluate --traces=trace.jsonl --trace_html=trace.html
    python -m janus_jax.evaluate --checkpoint=DIR --source=test.de --references=test.en --setting=ar:beam=1 --setting=nar:passes=4
    python -m janus_jax.evaluate --checkpoint=DIR --source=dev.de --references=dev.en --setting=ctc:blank_penalty=0 \\
        --setting=ctc:blank_penalty=1 --save_best=DIR_TUNED
    python -m janus_jax.evaluate --checkpoint=DIR --pairs=test.tsv
    python -m janus_jax.evaluate --checkpoint=DIR --source=test.letters --references=test.phonemes --error_rates
    python -m janus_jax.evaluate --task=squadqg --hypotheses=out.txt --source=test.src --references=test.tgt
    python -m janus_jax.evaluate --glge=data/glge/easy --predictions=out/ar --predictions=out/nar

Without --setting a checkpoint's form compares, of the modes that the model was trained for: greedy search and beam 5 (ar),
1, 4 and 10 passes (nar), best path and beam 5 (ctc), all four searches (dag). --save_best writes a copy of the checkpoint
that decodes by the setting with the highest BLEU; choose it on validation text, not on the test split. Sentences a second do
not include compilation. --error_rates adds the token and the sequence error rate; --save_best then takes the setting with
the lowest sequence error rate. Equal sources are one sequence that has several references. --task adds the metrics of a GLGE
task, by the rules of the benchmark's scripts or, with --clean, without their quirks. --glge checks folders of predictions, in
the files that GLGE takes (xsum.easy.test), and scores all tasks whose targets are there, with the overall score. --moses is
for text that was cut into Moses words. It adds BLEU of these words. For sacreBLEU and chrF they are joined to plain text.
Exit status: 0, or 2 if the input cannot be used.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from janus_jax import checkpoint, files, parallel
from janus_jax.command_line import ArgumentParser, report_mistakes
from janus_jax.config import DecodeConfig
from janus_jax.decode import Generator
from janus_jax.decode.io import LinesError, check_outputs, read_lines, write_lines
from janus_jax.decode.keywords import for_scores
from janus_jax.evaluate import glge, trace_html
from janus_jax.evaluate.scores import check_aligned, error_rates, score, tokenized
from janus_jax.evaluate.settings import describe, evaluate_settings, format_table, parse_setting, standard_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line with these arguments (default: the process's own) and returns its exit status."""
    parser = ArgumentParser(
        prog="python -m janus_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--references", help="file of reference lines")
    parser.add_argument("--hypotheses", help="file of lines to score")
    parser.add_argument(
        "--checkpoint", help="a step directory, or a directory of checkpoints (the latest), to decode with"
    )
    parser.add_argument("--source", help="file of source lines to decode")
    parser.add_argument(
        "--pairs", help="file with source TAB reference in each line, in place of --source and --references"
    )
    parser.add_argument("--setting", action="append", help="mode:name=value,... as ar:beam=5; may be repeated")
    parser.add_argument("--mode", help="short for one --setting without values")
    parser.add_argument(
        "--runs", type=int, default=1, help="timed runs of each setting; the median counts (default: 1)"
    )
    parser.add_argument(
        "--batch_tokens",
        type=int,
        help="of every setting: sentences * hypotheses * padded length of a batch stay below it",
    )
    parser.add_argument("--output_dir", help="also write the decoded lines there, a file for each setting")
    parser.add_argument(
        "--save_best",
        help="directory of a new checkpoint: the same model, with the setting of the best BLEU (with --error_rates: of the lowest "
        "sequence error rate) as its default",
    )
    parser.add_argument(
        "--task", choices=glge.TASKS, help="also the metrics of this GLGE task, by the rules of the benchmark's scripts"
    )
    parser.add_argument(
        "--clean", action="store_true", help="with --task or --glge: without the quirks of these scripts"
    )
    parser.add_argument(
        "--error_rates",
        "--error-rates",
        action="store_true",
        help="also token and sequence error rate (0-100); tokens are separated by spaces, and equal sources share their references",
    )
    parser.add_argument("--glge", help="folder of a version of GLGE, as data/glge/easy")
    parser.add_argument(
        "--predictions", action="append", help="with --glge: folder of files TASK.VERSION.SPLIT; may be repeated"
    )
    parser.add_argument(
        "--moses",
        metavar="LANG",
        help="hypotheses and --references are Moses words of this language (en); needs --plain_references",
    )
    parser.add_argument(
        "--plain_references", "--plain-references", help="with --moses: the references before they were cut into words"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--trace_html", "--trace-html", help="page to write, on which a reader steps through the passes of --traces"
    )
    parser.add_argument("--traces", help="file that python -m janus_jax.decode --mode=nar --trace=FILE wrote")
    args = parser.parse_args(argv)
    body = _body(parser, args)
    return report_mistakes(lambda: body(args))


# The flags of each form of the command, after the flag that chooses it.
_FORMS = {
    "traces": {"trace_html"},
    "glge": {"predictions", "clean", "json"},
    "hypotheses": {"references", "source", "task", "clean", "error_rates", "moses", "plain_references", "json"},
    "checkpoint": {
        "source", "references", "pairs", "setting", "mode", "runs", "batch_tokens", "output_dir", "save_best", "task", "clean",
        "error_rates", "moses", "plain_references", "json",
    },
}  # fmt: skip
_NEEDS = {
    "traces": ("trace_html", "the page to write"),
    "glge": ("predictions", "a folder of files TASK.VERSION.SPLIT"),
    "hypotheses": ("references", "the lines to compare with"),
    "checkpoint": ("source", "the lines to decode"),
}


def _body(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Callable[[argparse.Namespace], None]:
    """The function for the form of the command that the flags choose; ends the process where they do not fit together."""
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    forms = [form for form in _FORMS if form in given]
    if "trace_html" in given and not forms:
        parser.error("--trace_html needs --traces, the file to show")
    if len(forms) != 1:
        parser.error(
            "give --hypotheses, to score a file, or --checkpoint and --source, to decode and score, each with --references; "
            "--traces and --trace_html, for a page; or --glge and --predictions"
        )
    form = forms[0]
    if others := sorted(given - _FORMS[form] - {form}):
        owners = " or ".join(f"--{other}" for other, names in _FORMS.items() if others[0] in names)
        parser.error(f"--{others[0]} goes with {owners}, not with --{form}")
    if "pairs" in given and (both := sorted(given & {"source", "references"})):
        parser.error(f"--pairs holds sources and references; leave --{both[0]} out")
    needs = () if "pairs" in given else (_NEEDS[form], ("references", "the lines to compare with"))
    for name, meaning in needs:
        if name in _FORMS[form] and name not in given:
            parser.error(f"--{form} needs --{name}, {meaning}")
    if "clean" in given and form != "glge" and "task" not in given:
        parser.error("--clean goes with --task")
    if "moses" in given and not re.fullmatch("[a-z]{2}", args.moses):
        parser.error(f"--moses={args.moses}: give the two letters of a language, as en")
    if ("moses" in given) != ("plain_references" in given):
        parser.error("--moses and --plain_references go together")
    if form == "hypotheses":
        needed = "task" in given and glge.TASKS[args.task].needs_sources
        if needed and "source" not in given:
            parser.error(f"--task={args.task} needs --source, since equal sources share their references")
        if "source" in given and not needed and "error_rates" not in given:
            parser.error("--source: --hypotheses are scored without sources; leave it out")
        if "source" not in given and "error_rates" in given:
            print(
                "note: without --source each line is a sequence of its own; with it, equal sources share their references",
                file=sys.stderr,
            )
    if args.runs < 1:
        parser.error(f"--runs={args.runs}: at least one run is needed")
    return {
        "traces": _write_traces,
        "glge": _score_benchmark,
        "hypotheses": _score_files,
        "checkpoint": _score_checkpoint,
    }[form]


def _write_traces(args: argparse.Namespace) -> None:
    check_outputs({"--traces": args.traces}, {"--trace_html": args.trace_html})
    count = trace_html.write(args.trace_html, args.traces)
    if args.trace_html != "-":
        print(f"{args.trace_html}: {count} sentences")


def _score_files(args: argparse.Namespace) -> None:
    hypotheses, references = _read_lines(args.hypotheses), _read_lines(args.references)
    check_aligned(args.hypotheses, hypotheses, args.references, references)
    sources = None if args.source is None else _read_lines(args.source)
    if sources is not None:
        check_aligned(args.source, sources, args.references, references)
    plain = _plain_references(args, references)
    metrics = score(hypotheses, references) | _more_scores(args, hypotheses, references, sources, plain)
    if args.json:
        print(json.dumps(metrics, indent=2))
    else:
        for name, value in metrics.items():
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {'-' if value is None else value}")


def _score_benchmark(args: argparse.Namespace) -> None:
    folders = {folder: glge.read_predictions(args.glge, folder) for folder in args.predictions}
    columns = {
        folder: glge.score_predictions(predictions, strict=not args.clean) for folder, predictions in folders.items()
    }
    splits = {split: {folder: scores.get(split, {}) for folder, scores in columns.items()} for split in glge.SPLITS}
    splits = {split: scores for split, scores in splits.items() if any(scores.values())}
    if args.json:
        every = {
            split: {folder: {"tasks": tasks, "overall": glge.overall(tasks)} for folder, tasks in scores.items()}
            for split, scores in splits.items()
        }
        print(json.dumps(every, indent=2))
        return
    for split, scores in splits.items():
        published = not args.clean and Path(args.glge).resolve().name == "easy"
        print(f"{split}, {'clean' if args.clean else 'strict'} rules\n")
        print(glge.format_scores(scores, published=published))
        print(
            f"\nThe columns {', '.join(glge.PUBLISHED)} are published scores on the test split.\n" if published else ""
        )
    for predictions in folders.values():
        for one in predictions:
            if one.references is None:
                print(f"{one.path}: {len(one.lines)} predictions, complete; no targets to score them")


def _score_checkpoint(args: argparse.Namespace) -> None:
    parallel.start(alone=True)
    own = [parse_setting(text) for text in args.setting or []]
    own += [parse_setting(args.mode, "--mode")] if args.mode else []
    if args.pairs:
        sources, references = _read_pairs(args.pairs)
    else:
        sources, references = _read_lines(args.source), _read_lines(args.references)
        check_aligned(args.source, sources, args.references, references)
    if (args.task or args.error_rates) and not any(line.strip() for line in references):
        raise LinesError(f"{args.references or args.pairs}: all references are empty; nothing can be scored")
    plain = _plain_references(args, references)
    _check_places(args)
    if args.task:
        glge.check_installed(args.task)
    # One checkpoint throughout: a run that goes on may write a newer one, and delete this one, during the decoding.
    found = checkpoint.find(args.checkpoint)
    generator = Generator.from_checkpoint(found)
    model = checkpoint.checksum(found)  # `convert export --scores` compares it
    own = own or standard_settings(generator.trained)
    settings = own
    if args.batch_tokens is not None:
        settings = [{**setting, "batch_tokens": args.batch_tokens} for setting in settings]
    for setting in settings:
        generator.check(sources, **for_scores(setting))
    to_save = _on_host(checkpoint.load(found)) if args.save_best else None
    outputs = [Path(args.output_dir) / f"{_file_name(setting)}.txt" for setting in settings] if args.output_dir else []
    if outputs:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        read = {f"--{name}": getattr(args, name) for name in ("source", "references", "pairs")}
        for output in outputs:
            check_outputs(read, {f"--output_dir={args.output_dir}: the file": str(output)})
    total = len(settings) * (args.runs + 1) * len(sources)
    with tqdm(total=total, unit="line", disable=not sys.stderr.isatty()) as bar:
        results = evaluate_settings(generator, sources, references, settings, runs=args.runs, progress=bar.update)
    for result, output in itertools.zip_longest(results, outputs):
        hypotheses = result.pop("hypotheses")
        if output:
            write_lines(output, hypotheses)
        result |= {"model": model, "lines": len(sources)}
        result |= _more_scores(args, hypotheses, references, sources, plain)
    if args.error_rates:
        best = min(range(len(results)), key=lambda i: results[i]["sequence_error_rate"])
    else:
        best = max(range(len(results)), key=lambda i: results[i]["bleu"])
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        named = ("bleu_words", "token_error_rate", "sequence_error_rate")
        more = [name for name in results[0] if name.startswith(f"{args.task}/") or name in named]
        print(format_table(results, more))
        print(
            f"\n{results[0]['bleu_signature']}; {results[0]['chrf_signature']}; sentences/s without compilation, {len(sources)} lines"
        )
    if to_save is not None:
        about = {"setting": describe(own[best]), "bleu": results[best]["bleu"]}
        if args.error_rates:
            about["sequence_error_rate"] = results[best]["sequence_error_rate"]
        _save_with_setting(to_save, args.save_best, generator.settings(for_scores(own[best])), about)
        reason = "lowest sequence error rate" if args.error_rates else "best BLEU"
        print(f"wrote {args.save_best} with {about['setting']}, the setting of the {reason}", file=sys.stderr)


def _more_scores(
    args: argparse.Namespace,
    hypotheses: list[str],
    references: list[str],
    sources: list[str] | None,
    plain_references: list[str] | None,
) -> dict[str, Any]:
    """The metrics of --task, as task/metric with task/mean, its share of GLGE's overall score; of --moses, --error_rates."""
    more: dict[str, Any] = {}
    if args.task:
        scores = glge.score(args.task, hypotheses, references, sources, strict=not args.clean)
        more |= {f"{args.task}/{name}": value for name, value in {**scores, "mean": glge.mean(scores)}.items()}
    if args.error_rates:
        more |= error_rates(hypotheses, references, sources)
    if plain_references is not None:
        more |= tokenized(hypotheses, references, plain_references, args.moses)
    return more


def _plain_references(args: argparse.Namespace, references: list[str]) -> list[str] | None:
    if args.plain_references is None:
        return None
    lines = _read_lines(args.plain_references)
    check_aligned(args.plain_references, lines, args.references or args.pairs, references)
    return lines


def _check_places(args: argparse.Namespace) -> None:
    """Raises what is wrong with the directories to write, before the decoding."""
    if args.save_best and os.path.lexists(args.save_best):
        raise FileExistsError(f"{args.save_best}: exists already; remove it or name another directory")
    for flag, path in (("--output_dir", args.output_dir), ("--save_best", args.save_best)):
        if path == "":
            raise LinesError(f"{flag}=: names no directory; name one, or leave {flag} out")
        if path is not None:
            try:
                files.check_directory(path)
            except OSError as error:
                raise LinesError(
                    f"{flag}={path}: {error.strerror} ({error.filename}); name a directory in a writable one"
                ) from error
    if args.output_dir and args.save_best:
        output, best = Path(args.output_dir).resolve(), Path(args.save_best).resolve()
        if output.is_relative_to(best):  # which must not exist when the checkpoint is written
            raise LinesError(
                f"--output_dir={args.output_dir}: lies in --save_best={args.save_best}; name another directory"
            )


def _file_name(setting: dict[str, Any]) -> str:
    return describe(setting).replace(":", "_").replace(",", "_").replace("=", "")


def _on_host(loaded: checkpoint.Loaded) -> checkpoint.Loaded:
    """The same checkpoint, so that only one model stays on the accelerator."""
    return dataclasses.replace(loaded, params=jax.device_get(loaded.params))


def _save_with_setting(loaded: checkpoint.Loaded, output: str, decode: DecodeConfig, about: dict[str, Any]) -> None:
    """Writes a copy of a checkpoint whose settings of decoding are `decode`."""
    config = dataclasses.replace(loaded.config, decode=decode)
    about = checkpoint.origin(loaded.about) | {"step": loaded.step, "made_by": "evaluate"} | about
    checkpoint.write(output, loaded.params, config, loaded.tokenizer, about)


def _read_lines(path: str) -> list[str]:
    """The lines of a file, of which there must be at least one."""
    lines = read_lines(path)
    if not lines:
        raise LinesError(f"{'standard input' if path == '-' else path} is empty; give at least one line")
    return lines


def _read_pairs(path: str) -> tuple[list[str], list[str]]:
    """The sources and the references of a file with source TAB reference in each line."""
    pairs = [line.split("\t") for line in _read_lines(path)]
    for number, cells in enumerate(pairs, 1):
        if len(cells) != 2:
            raise LinesError(
                f"--pairs={path}, line {number}: {len(cells)} column{'s' * (len(cells) != 1)}; give source TAB reference"
            )
    return [source for source, _ in pairs], [reference for _, reference in pairs]


if __name__ == "__main__":
    sys.exit(main())
