"""What a pretrained model brings to small tasks: AR, mask-predict, CTC and DAG, beside the same models from scratch.

    python benchmarks/transfer.py --pretrained=runs/bart_tiny [--cell=headline ...] [--seed=0 ...]
    python benchmarks/transfer.py --table               # the finished cells as Markdown tables
    python benchmarks/transfer.py --plot=FILE.svg       # BLEU of the parallel modes against BLEU of AR during training
    python benchmarks/transfer.py --list                # the cells, and which are done
    python benchmarks/transfer.py --overlap=FILE        # how many sources of the tasks stand in the pretraining's text

A cell is a preset of configs/bart_tiny_tasks.py with a seed. It is trained in a directory of its own in --workdir until the
loss of held-out pairs no longer falls; an interrupted training resumes with the same command. Then every decoding setting
of the best checkpoint scores the task's valid.tsv, which training has not seen: ROUGE F1 with the 95% interval of 1000
bootstrap samples of the pairs (rouge-score's aggregator). A finished cell has a file in benchmarks/results/transfer/. The
program runs it again only if its settings change; a new setting of the package is no change while it has its default.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

import numpy as np

from benchmarks import common, study
from configs import bart_tiny_tasks
from janus_jax import checkpoint, parallel
from janus_jax import config as config_lib
from janus_jax.checkpoint import best_first
from janus_jax.command_line import ArgumentParser
from janus_jax.config import Config
from janus_jax.data import prepare
from janus_jax.data.sources import open_file
from janus_jax.decode import Generator
from janus_jax.decode.io import read_lines
from janus_jax.metrics import read_metrics
from janus_jax.train.loop import train_or_stop

RESULTS = Path(__file__).resolve().parent / "results" / "transfer"
OVERLAP = RESULTS.with_name("transfer_overlap.json")
PHRASE = 8  # words that are looked for in the pretraining's text
TASKS = ("qg", "wikidesc", "headline")  # the shortest first
CELLS = tuple(f"{task}{family}{start}" for task in TASKS for family in ("", "_dag") for start in ("", "_scratch"))
SEEDS = (0, 1)
ROUGE = ("rouge1", "rouge2", "rougeL")
# The decoding settings that score the models of an objective, with their names in the table.
DECODINGS = {
    "janus_all": {
        "ar:beam=5": "AR, beam 5",
        "ar:beam=1": "AR, greedy",
        "nar:passes=1,length_beam=3": "mask-predict, 1 pass",
        "nar:passes=4,length_beam=3": "4 passes",
        "nar:passes=10,length_beam=3": "10 passes",
        "ctc:beam=1": "CTC, 1 pass",
        "ctc:beam=20": "CTC, beam 20",
        "ctc:beam=20,rerank=ar": "CTC, beam 20, AR reranks",
    },
    "janus_dag": {
        "ar:beam=5": "AR beside DAG, beam 5",
        "dag:search=lookahead": "DAG, lookahead",
        "dag:search=beam,beam=20": "DAG, beam 20",
        "dag:search=beam,beam=20,rerank=ar": "DAG, beam 20, AR reranks",
    },
}


def config_of(
    cell: str, seed: int, pretrained: str | None = None, data: Path = Path("data"), prepared: Path = Path("prepared")
) -> Config:
    """The config of a cell.

    Args:
      cell: a preset of configs/bart_tiny_tasks.py.
      seed: of parameters, dropout, order and masks.
      pretrained: run whose model, or only its tokenizer, the cell starts from; default: the preset's.
      data: folder with a folder for each task, which holds train.tsv and valid.tsv.
      prepared: parent of the prepared datasets, which are created if absent.
    """
    config = bart_tiny_tasks.get_config(cell)
    config.train.seed = config.data.seed = seed
    task = cell.split("_")[0]
    config.data.train, config.data.test = (str(data / task / f"{name}.tsv") for name in ("train", "valid"))
    config.data.prepared = str(prepared / task)
    if pretrained and config.init_from:
        config.init_from = pretrained
    elif pretrained:
        config.text.model = pretrained
    return config_lib.resolve(config)


def run_cell(cell: str, config: Config, workdir: Path, path: Path) -> bool:
    """Trains a cell or resumes its run, scores it and writes its file; False if the training was stopped before its end."""
    _, stopped = train_or_stop(config, workdir)
    if stopped:
        print(f"{cell}: stopped; the same command resumes it")
        return False
    evaluations = {r["step"]: r for r in read_metrics(workdir / "metrics.jsonl") if "valid/loss" in r}
    best = best_first(list(evaluations), config.train, evaluations)[0]
    generator = Generator.from_checkpoint(workdir / "checkpoints" / str(best))
    text = Path(config.data.prepared) / "text"
    sources, references = (
        read_lines(str(text / f"test.{side}")) for side in (config.data.source_lang, config.data.target_lang)
    )
    rows = []
    for setting in DECODINGS[config.objective.name]:
        rows.append({"setting": setting} | rouge(study.hypotheses(generator, workdir, setting, sources), references))
        print(cell, rows[-1], flush=True)
    figures = {
        "cell": cell,
        "seed": config.train.seed,
        "settings": study.changed_settings(config),
        "config_hash": config_lib.config_hash(config),
        "start": checkpoint.checksum(config.init_from) if config.init_from else None,  # of its parameters
        "machine": common.machine(),
        "best_step": best,
        "last_step": max(evaluations),
        "validation": {step: study.named(record, "valid/") for step, record in sorted(evaluations.items())},
        "pairs": len(references),
        "rows": rows,
    }
    study.write(path, figures)
    return True


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L (0-100), F1, each with the ends of its 95% interval (`rougeL_low`, `rougeL_high`).

    They are those of rouge-score's aggregator: the median and the percentiles of the means of 1000 bootstrap samples of the
    pairs, always the same ones.
    """
    from rouge_score.rouge_scorer import RougeScorer  # its imports take a second
    from rouge_score.scoring import BootstrapAggregator

    scorer, aggregator = RougeScorer(list(ROUGE)), BootstrapAggregator()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        aggregator.add_scores(scorer.score(reference, hypothesis))
    np.random.seed(0)  # noqa: NPY002, the aggregator draws from NumPy's global generator
    figures = {}
    for name, score in aggregator.aggregate().items():
        for end, value in (("", score.mid), ("_low", score.low), ("_high", score.high)):
            figures[f"{name}{end}"] = round(100 * float(value.fmeasure), 3)
    return figures


def tables(cells: dict[str, list[dict[str, Any]]]) -> str:
    """ROUGE of the finished cells as a Markdown table for each task; the seeds of a cell are separated by commas."""
    parts = []
    for task in TASKS:
        starts = ("", "_scratch")
        done = {cell: seeds for cell, seeds in cells.items() if cell.split("_")[0] == task}
        if not done:
            continue
        lines = [f"| {task} | pretrained: ROUGE-1 / 2 / L | from scratch: ROUGE-1 / 2 / L |", "|---|--:|--:|"]
        for family, objective in (("", "janus_all"), ("_dag", "janus_dag")):
            for setting, name in DECODINGS[objective].items():
                values = [_scores(done.get(f"{task}{family}{start}", []), setting) for start in starts]
                if any(values):
                    lines.append(f"| {name} | {' | '.join(value or 'not run' for value in values)} |")
        runs = [figures for seeds in done.values() for figures in seeds]
        widest = max(row["rougeL_high"] - row["rougeL_low"] for figures in runs for row in figures["rows"])
        steps = [
            f"{', '.join(str(figures['best_step']) for figures in seeds)} (`{cell}`)" for cell, seeds in done.items()
        ]
        lines.append(f"\n{runs[0]['pairs']} pairs; 95% intervals of ROUGE-L are at most {widest:.1f} wide. ")
        parts.append("\n".join(lines) + f"Best steps: {'; '.join(steps)}.")
    return "\n\n".join(parts)


def _scores(seeds: Sequence[dict[str, Any]], setting: str) -> str:
    rows = [row for figures in seeds for row in figures["rows"] if row["setting"] == setting]
    return ", ".join(" / ".join(f"{row[name]:.1f}" for name in ROUGE) for row in rows)


def plot(cells: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws BLEU of each parallel mode against BLEU of AR at every evaluation, as an SVG file.

    There is a panel for each task that was run from both starts.
    """
    import matplotlib as mpl
    import matplotlib.figure

    tasks = [task for task in TASKS if any({f"{task}{f}", f"{task}{f}_scratch"} <= cells.keys() for f in ("", "_dag"))]
    figure = mpl.figure.Figure(figsize=(4 * len(tasks), 4), layout="constrained")
    colours = {"nar": "tab:blue", "ctc": "tab:orange", "dag": "tab:green"}
    names = {"nar": "mask-predict", "ctc": "CTC", "dag": "DAG"}
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        labels = set()
        for cell, seeds in cells.items():
            if cell.split("_")[0] != task:
                continue
            start = "from scratch" if cell.endswith("_scratch") else "pretrained"
            for figures in seeds:
                curve = list(figures["validation"].values())
                for mode in (mode for mode in names if f"bleu_{mode}" in curve[0]):
                    label = f"{names[mode]}, {start}"
                    axes.plot(
                        [point["bleu_ar"] for point in curve], [point[f"bleu_{mode}"] for point in curve], marker=".",
                        color=colours[mode], linestyle="-" if start == "pretrained" else ":", linewidth=1,
                        label=None if label in labels else label,
                    )  # fmt: skip
                    labels.add(label)
        axes.set(title=task, xlabel="AR half: BLEU of beam 5")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)  # not all tasks have all modes
    figure.axes[0].set_ylabel("parallel half: BLEU")
    # No date and fixed ids: the same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "transfer"}):
        figure.savefig(path, metadata={"Date": None})


def overlap(text: Iterable[str], data: Path) -> dict[str, dict[str, int]]:
    """How many pairs of each split, "qg/valid", have a source that stands in a text.

    A source counts if its first `PHRASE` words and those from its middle stand in lines of the text.

    Args:
      text: lines of the pretraining's text.
      data: see `config_of`.

    Returns:
      For each split `pairs`, and those `seen` in the text; for valid also the pairs whose target is one of train.
    """
    sources: dict[str, list[tuple[str, str]]] = {}
    targets: dict[str, list[str]] = {}
    for split in (f"{task}/{name}" for task in TASKS for name in ("train", "valid")):
        pairs = [line.split("\t") for line in read_lines(str(data / f"{split}.tsv"))]
        words = [source.split() for source, _ in pairs]
        halves = [len(one) // 2 for one in words]
        sources[split] = [
            (" ".join(one[:PHRASE]), " ".join(one[half : half + PHRASE]))
            for one, half in zip(words, halves, strict=True)
        ]
        targets[split] = [target for _, target in pairs]
    # Only phrases of PHRASE words can be found like this; a source of fewer than 2 * PHRASE - 1 counts as not seen.
    wanted = {phrase for phrases in sources.values() for pair in phrases for phrase in pair}
    first = {phrase.split(" ", 1)[0] for phrase in wanted}
    found = set()
    for line in text:
        words = line.split()
        for start, word in enumerate(words):
            if word in first and (phrase := " ".join(words[start : start + PHRASE])) in wanted:
                found.add(phrase)
    counts = {
        split: {"pairs": len(phrases), "seen": sum(found.issuperset(pair) for pair in phrases)}
        for split, phrases in sources.items()
    }
    for task in TASKS:
        known = set(targets[f"{task}/train"])
        counts[f"{task}/valid"]["targets of train"] = sum(target in known for target in targets[f"{task}/valid"])
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cells; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", help="run of configs/bart_tiny_entext.py; default: the presets'")
    parser.add_argument("--cell", action="append", choices=CELLS, help="repeatable; all by default")
    parser.add_argument("--seed", action="append", type=int, help=f"repeatable; {SEEDS} by default")
    parser.add_argument("--workdir", type=Path, default=Path("runs/transfer"), help="parent of the runs' directories")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the tasks' folders")
    parser.add_argument("--prepared", type=Path, default=Path("prepared"), help="parent of the prepared datasets")
    parser.add_argument("--list", action="store_true", help="only list the cells")
    parser.add_argument("--table", action="store_true", help="only print the tables of the finished cells")
    parser.add_argument("--plot", type=Path, help="only draw the finished cells as an SVG file")
    parser.add_argument(
        "--overlap", type=Path, help="only look for the sources of --data in this text, a document a line"
    )
    args = parser.parse_args(argv)
    if args.table:
        print(tables(study.load_cells(RESULTS, CELLS)))
    if args.plot:
        plot(study.load_cells(RESULTS, CELLS), args.plot)
    if args.overlap:
        with open_file(args.overlap) as file:
            counts = overlap(io.TextIOWrapper(file, "utf-8"), args.data)
        study.write(OVERLAP, {"text": args.overlap.name, "words": PHRASE, "splits": counts})
        print(json.dumps(counts, indent=1))
    if args.table or args.plot or args.overlap:
        return 0
    if not args.list:
        parallel.start()

    def run(cell: str, config: Config, name: str) -> bool:
        prepare(config)
        return run_cell(cell, config, args.workdir / name, RESULTS / f"{name}.json")

    configs = (
        (cell, config_of(cell, seed, args.pretrained, args.data, args.prepared))
        for seed in args.seed or SEEDS  # all cells of a seed first, so that the tables are complete early
        for cell in args.cell or CELLS
    )
    return study.run_missing(configs, RESULTS, run, only_list=args.list)


if __name__ == "__main__":
    sys.exit(main())
