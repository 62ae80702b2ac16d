"""Speculative decoding and infilling on real text: equality with greedy search, passes and time.

    python benchmarks/speculation.py --checkpoint=runs/multi30k_masks --source=TEST.de [--references=TEST.en] \\
        [--batches=1,32] [--json]

The program takes each drafter that the model has (heads, CTC, DAG and NAR rows) and compares outputs with those of greedy
search. Where two outputs differ, it compares the log-probabilities of the two tokens at the first difference: closer
than 1e-4 is a tie by rounding, anything else is a mistake. With
--references, for a model that was trained with AUX, the program replaces every third word of the references by a gap.
AUX fills the gaps left to right, once token by token and once with drafts, and the program counts the outputs that
differ.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from janus_jax import parallel
from janus_jax.command_line import ArgumentParser
from janus_jax.decode import Generator, Output
from janus_jax.decode.io import read_lines

TIE = 1e-4


def without_policy(generator: Generator) -> Generator:
    """A copy of the generator with a new draft policy."""
    g = generator
    return Generator(
        g.net, g.params, g.tokenizer, g.decode_config, max_source_length=g.max_source_length,
        max_target_length=g.max_target_length, trained=g.trained, mesh=g.mesh,
    )  # fmt: skip


def decode(
    generator: Generator, lines: Sequence[str], batch: int, cases: Sequence[dict[str, Any]]
) -> list[tuple[list[Output], list[float]]]:
    """Of each case, keywords of `generate`: the outputs of the lines in batches of `batch`, and the seconds of each batch.

    The cases take turns at each batch, and another one begins each time, so that they share the machine's faster and slower
    moments. Both are from the second of two rounds.
    """
    for _ in range(2):  # the first round compiles
        trials = [without_policy(generator) for _ in cases]
        results: list[tuple[list[Output], list[float]]] = [([], []) for _ in cases]
        for number, start in enumerate(range(0, len(lines), batch)):
            part = slice(start, start + batch)
            for turn in range(len(cases)):
                at = (number + turn) % len(cases)
                settings = {name: value[part] if name == "targets" else value for name, value in cases[at].items()}
                outputs, times = results[at]
                began = time.perf_counter()
                outputs += trials[at].generate(lines[part], batch_tokens=1 << 20, **settings)
                times.append(time.perf_counter() - began)
    return results


def gap_of(generator: Generator, line: str, one: Output, other: Output) -> float:
    """Difference of the log-probabilities, by teacher forcing, of the two tokens at which two outputs first differ."""
    net, params, special = generator.net, generator.params, generator.net.specials
    first, second = ([*output.tokens, special.eos] for output in (one, other))
    at = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    longest = generator.max_source_length - 2
    source = np.asarray([[special.bos, *generator.tokenizer.encode(line)[:longest], special.eos]])
    start = [special.eos] if net.config.ar_start == "eos" else []
    inputs = np.asarray([[*start, special.bos, *first[:at]]])
    log_probs = jax.nn.log_softmax(net.project(params, net.ar_rows(params, net.encode(params, source), inputs))[0, -1])
    return float(abs(log_probs[first[at]] - log_probs[second[at]]))


def compare(generator: Generator, lines: Sequence[str], base: list[Output], others: list[Output]) -> dict[str, Any]:
    """Number of outputs that differ, number of ties among them, and the largest difference of `gap_of`."""
    pairs = [(line, a, b) for line, a, b in zip(lines, base, others, strict=True) if a.tokens != b.tokens]
    gaps = [gap_of(generator, *pair) for pair in pairs]
    return {"different": len(pairs), "ties": sum(gap < TIE for gap in gaps), "largest_gap": max(gaps, default=0.0)}


def row_of(name: str, batch: int, outputs: list[Output], times: list[float]) -> dict[str, Any]:
    """Figures of one setting."""
    sums = {
        key: sum(output.statistics.get(key, 0) for output in outputs)
        for key in ("passes", "rounds", "drafts", "drafted")
    }
    return {
        "setting": name,
        "batch": batch,
        "sentences": len(outputs),
        "tokens_per_sentence": sum(len(output.tokens) + 1 for output in outputs) / len(outputs),
        "passes_per_sentence": sums["passes"] / len(outputs),
        "accepted_per_draft": sums["drafted"] / sums["drafts"]
        if sums["drafts"]
        else None,  # only NAR makes separate drafts
        "accepted_per_round": sums["drafted"] / max(sums["rounds"], 1),
        "milliseconds_per_sentence": 1000 * sum(times) / len(outputs),
        "median_milliseconds_per_batch": 1000 * median(times),
    }


def cut(line: str) -> str:
    """The line with every third word replaced by a gap."""
    words = line.split()
    return " ".join("<mask>" if number % 3 == 2 else word for number, word in enumerate(words))


def drafters(generator: Generator) -> list[str]:
    """What can make drafts in this model, a value of `draft_from` each."""
    trained = [mode for mode in ("ctc", "dag", "nar") if generator.trained is None or mode in generator.trained]
    model = generator.net.config
    able = {"ctc": model.ctc_ratio > 0, "dag": model.dag_ratio > 0, "nar": True}
    return ["heads"] * (model.draft_heads > 0) + [mode for mode in trained if able[mode]]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of all settings and batch sizes, as the last line prints them."""
    generator = Generator.from_checkpoint(args.checkpoint)
    if args.dtype:
        model = dataclasses.replace(generator.net.config, dtype=args.dtype)
        generator.net = dataclasses.replace(generator.net, config=model)
    lines = read_lines(args.source)[: args.sentences]
    references = read_lines(args.references)[: args.sentences] if args.references else None
    if references and "infill" not in generator.trained:
        raise SystemExit(f"--references: {args.checkpoint} was not trained to fill gaps (AUX rows); leave it out")
    drafts = [{"draft": "always"}] if args.always else [{}, {"draft": "always"}]
    origins = drafters(generator)
    rows = []
    for batch in map(int, args.batches.split(",")):
        speculative = [{"mode": "speculative", "draft_from": origin, **draft} for origin in origins for draft in drafts]
        cases = [({"mode": "ar", "beam": 1}, speculative)]
        if references:
            infill = {"mode": "infill", "targets": [cut(line) for line in references]}
            twice = [] if args.always else [{"draft": "always", "draft_passes": 2}]
            cases.append(({**infill, "draft": "never"}, [{**infill, **draft} for draft in [*drafts, *twice]]))
        for base, others in cases:
            (first, times), *results = decode(generator, lines, batch, [base, *others])
            rows.append(row_of(base["mode"] if base["mode"] == "ar" else "infill, token by token", batch, first, times))
            for other, (outputs, seconds) in zip(others, results, strict=True):
                name = ",".join(f"{k}={v}" for k, v in other.items() if k not in ("mode", "targets"))
                row = row_of(f"{other['mode']}:{name}", batch, outputs, seconds)
                row["speed_up"] = sum(times) / sum(seconds)
                if base["mode"] == "ar":
                    row |= compare(generator, lines, first, outputs)
                else:
                    row["different"] = sum(a.tokens != b.tokens for a, b in zip(first, outputs, strict=True))
                rows.append(row)
        for row in rows:
            if row["batch"] == batch:
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return {"machine": common.machine(), "dtype": str(generator.net.dtype), "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--references")
    parser.add_argument("--sentences", type=int, help="number of sentences from the start; default: all")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--dtype", help="type of matrix products; default: the checkpoint's")
    parser.add_argument("--always", action="store_true", help="measure only --draft=always, to check equality alone")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    parallel.start()
    common.finish(measure(args), args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
