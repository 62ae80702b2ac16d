"""Grapheme to phoneme on CMUdict: joint models beside models of one family, on CPU cores.

    python benchmarks/g2p.py [--cell=ar_ctc ...] [--seed=0 ...] [--workdir=runs/g2p]   # train and score missing cells
    python benchmarks/g2p.py --table    # the finished cells as a Markdown table
    python benchmarks/g2p.py --list     # the cells, and which are done

A cell is a preset of configs/g2p_cmudict.py with a seed. It is trained in a directory of its own in --workdir, and an
interrupted training resumes with the same command. Then every decoding setting scores the validation and the test words:
phoneme error rate (PER) and word error rate (WER), as `janus_jax.evaluate --error_rates` computes them, with the 95%
interval of 1000 bootstrap samples of the words. A finished cell has a file in benchmarks/results/g2p/. The program runs it
again only if its settings change; a new setting of the package is no change while it has its default.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

import numpy as np

from benchmarks import common, study
from configs import g2p_cmudict
from janus_jax import config as config_lib
from janus_jax import parallel
from janus_jax.command_line import ArgumentParser
from janus_jax.config import Config
from janus_jax.data import prepare
from janus_jax.decode import Generator
from janus_jax.decode.io import read_lines
from janus_jax.evaluate.scores import sequence_errors
from janus_jax.metrics import read_metrics
from janus_jax.train import train

RESULTS = Path(__file__).resolve().parent / "results" / "g2p"
CELLS = ("ar", "ctc", "masks", "dag", "ar_ctc", "ar_masks", "ar_dag")
SEEDS = (0, 1)
SPLITS = ("valid", "test")
_SAMPLES = 1000

_AR = ("ar:beam=1", "ar:beam=5")
_CTC = ("ctc:beam=1", "ctc:beam=20")
_NAR = tuple(f"nar:passes={n},length_beam=3" for n in (1, 4, 10))
_DAG = ("dag:search=greedy", "dag:search=lookahead", "dag:search=viterbi", "dag:search=beam,beam=20")
# The decoding settings that score the models of an objective.
DECODINGS = {
    "ar": _AR,
    "ctc": _CTC,
    "cmlm": _NAR,
    "dag": _DAG,
    "janus_ctc": (*_AR, *_CTC, "ctc:beam=20,rerank=ar"),
    "janus": (*_AR, *_NAR, "nar:passes=4,length_beam=5,rerank=ar"),
    "janus_dag": (*_AR, *_DAG, "dag:search=beam,beam=20,rerank=ar"),
}


def config_of(cell: str, seed: int, prepared: str | None = None) -> Config:
    """The config of a cell.

    Args:
      cell: a preset of configs/g2p_cmudict.py.
      seed: of parameters, dropout, order and masks.
      prepared: folder of the prepared dataset; default: the preset's.
    """
    config = g2p_cmudict.get_config(cell)
    config.train.seed = config.data.seed = seed
    if prepared:
        config.data.prepared = prepared
    return config_lib.resolve(config)


def run_cell(cell: str, config: Config, workdir: Path, path: Path) -> bool:
    """Trains a cell or resumes its run, scores it and writes its file; False if the training was stopped before its end."""
    train(config, workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    curve = {r["step"]: study.named(r, "valid/") for r in records if "valid/loss" in r}
    if config.train.steps not in curve:
        print(f"{cell}: stopped; the same command resumes it")
        return False
    generator = Generator.from_checkpoint(workdir)
    rows = []
    for setting in DECODINGS[config.objective.name]:
        rows.append({"setting": setting})
        for split in SPLITS:
            sources, references = (
                read_lines(str(Path(config.data.prepared) / "text" / f"{split}.{side}"))
                for side in (config.data.source_lang, config.data.target_lang)
            )
            rows[-1][split] = rates(phonemes(generator, workdir, setting, split, sources), references, sources)
        print(cell, rows[-1], flush=True)
    figures = {
        "cell": cell,
        "seed": config.train.seed,
        "settings": study.changed_settings(config),
        "config_hash": config_lib.config_hash(config),
        "machine": common.machine(),
        "validation": curve,
        "rows": rows,
    }
    study.write(path, figures)
    return True


def phonemes(generator: Generator, workdir: Path, setting: str, split: str, sources: Sequence[str]) -> list[str]:
    """The output of a run's model for each line of a split; kept in the run's directory, a file for each setting."""
    words = list(dict.fromkeys(sources))  # a word with several pronunciations is decoded once
    outputs = study.hypotheses(generator, workdir, setting, words, f"{split}-{setting}")
    output_of = dict(zip(words, outputs, strict=True))
    return [output_of[source] for source in sources]


def rates(hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """PER and WER (0-100) with the half widths of their 95% intervals, the number of words, and the share of words (0-100)
    whose output is as long as one of their pronunciations.

    The intervals are those of the normal distribution with the standard deviation of `_SAMPLES` bootstrap samples of the
    words, always the same ones.
    """
    counts = np.array(sequence_errors(hypotheses, references, sources))  # [words, errors and tokens]
    table = np.stack([counts[:, 0], counts[:, 1], counts[:, 0] > 0, np.ones(len(counts))])  # [4, words]
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [table @ rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts))) for _ in range(_SAMPLES)], axis=1
    )  # [4, samples]

    def percent(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 100 * sums[0] / sums[1], 100 * sums[2] / sums[3]

    lengths: dict[str, set[int]] = {}
    for source, reference in zip(sources, references, strict=True):
        lengths.setdefault(source, set()).add(len(reference.split()))
    output_of = dict(zip(reversed(sources), reversed(hypotheses), strict=True))  # of a word's lines the first counts
    right = sum(len(output_of[source].split()) in allowed for source, allowed in lengths.items())
    figures = {"words": len(counts), "right_length": round(100 * right / len(counts), 3)}
    for name, value, samples in zip(("per", "wer"), percent(table.sum(axis=1)), percent(drawn), strict=True):
        figures[name] = round(float(value), 3)
        figures[f"{name}_interval"] = round(1.96 * float(np.std(samples)), 3)
    return figures


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """PER, WER and right lengths of all cells and settings as a Markdown table; commas separate the seeds of a cell."""
    lines = [
        "| model | decoding | valid PER | valid WER | valid right length | test PER | test WER | test right length |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for cell, seeds in cells.items():
        for position, row in enumerate(seeds[0]["rows"]):
            same = [figures["rows"][position] for figures in seeds]
            values = [
                ", ".join(f"{one[split][name]:.{digits}f}" for one in same)
                for split in SPLITS
                for name, digits in (("per", 2), ("wer", 1), ("right_length", 1))
            ]
            lines.append(f"| `{cell}` | {row['setting']} | {' | '.join(values)} |")
    rows = [row["test"] for seeds in cells.values() for figures in seeds for row in figures["rows"]]
    if rows:
        widest = {name: max(row[f"{name}_interval"] for row in rows) for name in ("per", "wer")}
        lines.append(
            f"\nTest: {rows[0]['words']} words; 95% intervals are at most ±{widest['per']:.2f} (PER) and "
            f"±{widest['wer']:.1f} (WER)."
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cells; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", action="append", choices=CELLS, help="repeatable; all by default")
    parser.add_argument("--seed", action="append", type=int, help=f"repeatable; {SEEDS} by default")
    parser.add_argument("--workdir", type=Path, default=Path("runs/g2p"), help="parent of the runs' directories")
    parser.add_argument("--prepared", help="folder of the prepared dataset; created if absent")
    parser.add_argument("--list", action="store_true", help="only list the cells")
    parser.add_argument("--table", action="store_true", help="only print the table of the finished cells")
    args = parser.parse_args(argv)
    if args.table:
        print(table(study.load_cells(RESULTS, CELLS)))
        return 0
    if not args.list:
        parallel.start()

    def run(cell: str, config: Config, name: str) -> bool:
        prepare(config)
        return run_cell(cell, config, args.workdir / name, RESULTS / f"{name}.json")

    configs = (
        (cell, config_of(cell, seed, args.prepared))
        for seed in args.seed or SEEDS  # all cells of a seed first, so that the table is complete early
        for cell in args.cell or CELLS
    )
    return study.run_missing(configs, RESULTS, run, only_list=args.list)


if __name__ == "__main__":
    sys.exit(main())
