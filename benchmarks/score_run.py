"""Scores a trained run by several decoding settings and writes the figures to a file.

    python -m benchmarks.score_run --workdir=runs/multi30k_masks --source=TEST.de --references=TEST.en \\
        --output=benchmarks/results/multi30k_masks.json [--setting=ar:beam=5 ...] [--json]
    python -m benchmarks.score_run --workdir=runs/bart_tiny --output=benchmarks/results/bart_tiny_entext.json

The file holds the config with its hash, the machine and versions, the curves of the run, and a row for each setting:
sacreBLEU and chrF with signatures, ROUGE, length ratio, repeated tokens, sentences/s without compilation. Without a
source the program decodes nothing: pretraining has no references.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from janus_jax import checkpoint, files, parallel
from janus_jax import config as config_lib
from janus_jax.command_line import ArgumentParser
from janus_jax.decode import Generator
from janus_jax.decode.io import read_lines
from janus_jax.evaluate import evaluate_settings, format_table, parse_setting
from janus_jax.metrics import read_metrics

# The settings of the published comparison. "Iteration n" of the released code is n + 1 passes.
AR = ("ar:beam=5", "ar:beam=1")
NAR = ("nar:passes=1,length_beam=1", *(f"nar:passes={n},length_beam=3" for n in (1, 2, 5, 10, 11)))
CTC = ("ctc:beam=1", "ctc:beam=5")
RERANKED_CTC = (*CTC, "ctc:beam=5,rerank=ar")
DAG = ("dag:search=lookahead", "dag:search=beam,beam=20")
SETTINGS = {
    "ar": AR,
    "cmlm": NAR,
    "janus": AR + NAR,
    "ctc": CTC,
    "janus_ctc": AR + RERANKED_CTC,
    "dag": DAG,
    "janus_dag": (*AR, *DAG, "dag:search=beam,beam=20,rerank=ar"),
    "janus_all": AR + NAR + RERANKED_CTC,
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The content of the file."""
    loaded = checkpoint.load(args.workdir)
    rows = score_settings(args, SETTINGS[loaded.config.objective.name]) if args.source else []
    records = read_metrics(Path(args.workdir) / "metrics.jsonl")
    validation = {record["step"]: _named(record, "valid/") for record in records if "valid/loss" in record}
    training = {r["step"]: _named(r, "nll/") for r in records if "loss/total" in r and r["step"] % 100 == 0}
    return {
        "config_hash": config_lib.config_hash(loaded.config),
        "config": _portable(json.loads(config_lib.to_json(loaded.config))),
        "step": loaded.step,
        "machine": common.machine(),
        "sentences": len(read_lines(args.source)) if args.source else 0,
        "validation": validation[max(validation)] if validation else {},
        "validation_curve": validation,
        "training_curve": training,
        "rows": rows,
    }


def score_settings(args: argparse.Namespace, standard: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each setting, without the hypotheses."""
    sources, references = read_lines(args.source), read_lines(args.references)
    generator = Generator.from_checkpoint(args.workdir)
    settings = [parse_setting(setting) for setting in args.setting or standard]
    rows = evaluate_settings(generator, sources, references, settings)
    print(format_table(rows))
    return [{name: value for name, value in row.items() if name != "hypotheses"} for row in rows]


def _portable(value: Any) -> Any:
    """Settings with each absolute path cut to its last name, since directories belong to one machine."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _named(record: dict[str, Any], prefix: str) -> dict[str, float]:
    return {name: round(value, 5) for name, value in record.items() if name.startswith(prefix)}


def main(argv: Sequence[str] | None = None) -> int:
    """Scores the run; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--source")
    parser.add_argument("--references")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--setting", action="append", help="as `python -m janus_jax.evaluate` takes it; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    if (args.source is None) != (args.references is None):
        parser.error("give both --source and --references, or neither")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    files.check_writable(args.output)
    parallel.start()
    figures = measure(args)
    files.write_bytes(args.output, (json.dumps(figures, indent=1) + "\n").encode())
    common.finish(figures, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
