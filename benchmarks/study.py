"""Compares objectives and recipes: one small Multi30k model for each cell of a table.

    python benchmarks/study.py [--cell=janus ...] [--seed=1] [--workdir=runs/study]   # train and score missing cells
    python benchmarks/study.py --speed       # sentences/s of cells that are in --workdir, all in one run
    python benchmarks/study.py --step_seconds=8  # time of the cells' training steps, in one run
    python benchmarks/study.py --table       # the tables of docs/recipes.md; --plot=FILE.svg draws them
    python benchmarks/study.py --plot_speed=FILE.svg  # quality against speed of the cells that --speed timed
    python benchmarks/study.py --compare     # paired bootstrap between cells that are in --workdir
    python benchmarks/study.py --list        # the cells, their purpose, and which are done

Every cell is a preset of configs/multi30k_deen.py with some changes: `study`, or for long runs a larger model. A cell
may start from another one, or read targets that another one translated; that one is then trained first, with seed 0:
seeds of a cell share what it starts from. The text is in data/multi30k or in the folder of --data. A finished cell has a
file in benchmarks/results/study/ (settings, hash, validation losses, scores on test_2016_flickr). The program runs it
again only if its settings change. A new setting of the package is no change while it has its default. --speed and
--step_seconds replace their files there. Without --cell they take the cells of preset `study` alone.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

import ml_collections

from benchmarks import common, study_report
from benchmarks.study_cells import CELLS, COMPARISONS, SEEDS, Cell
from configs import multi30k_deen
from janus_jax import config as config_lib
from janus_jax import parallel
from janus_jax.checkpoint import step_directories
from janus_jax.command_line import ArgumentParser
from janus_jax.config import Config
from janus_jax.data import prepare
from janus_jax.decode import Generator
from janus_jax.decode.distill import distill
from janus_jax.decode.io import read_lines
from janus_jax.evaluate import parse_setting, score
from janus_jax.metrics import read_metrics
from janus_jax.train.loop import train_or_stop

RESULTS = Path(__file__).resolve().parent / "results" / "study"
PATH_SETTINGS = ("data.prepared", "data.train", "data.valid", "data.test", "text.model", "init_from")


def config_of(
    cell: Cell, seed: int, folder: str | None = None, prepared: str | None = None, workdir: Path = Path("runs/study")
) -> Config:
    """The config of a cell.

    Args:
      cell: the preset and the changes to it.
      seed: seed of parameters, dropout, order and masks.
      folder: folder of the text; default: the preset's.
      prepared: folder of the prepared dataset of raw text; default: the preset's.
      workdir: parent of the runs' directories.
    """
    config: ml_collections.ConfigDict = multi30k_deen.get_config(cell.preset)
    if folder:
        d = config.data
        for split in ("train", "valid", "test"):
            d[split] = str(Path(folder) / Path(d[split]).name)
        if config.text.model:
            config.text.model = str(Path(folder) / Path(config.text.model).name)
    if prepared:
        config.data.prepared = prepared
    if cell.start:
        config.init_from = str(workdir / cell.start)
    if cell.distilled_by:
        config.data.prepared += f"_by_{cell.distilled_by}" + f"_{cell.readers}" * (cell.readers != "parallel")
    config.update_from_flattened_dict(cell.changes)
    config.train.seed = config.data.seed = seed
    return config_lib.resolve(config)


def result_path(name: str, seed: int) -> Path:
    """The file of a cell's figures."""
    return RESULTS / (f"{name}_seed{seed}.json" if seed else f"{name}.json")


def is_done(path: Path, config: Config) -> bool:
    """Whether the file holds a cell of these settings; a setting that is absent in the file counts as its default."""
    if not path.exists():
        return False
    return json.loads(path.read_text(encoding="utf-8"))["settings"] == changed_settings(config)


def changed_settings(config: Config) -> dict[str, Any]:
    """The settings that differ from their defaults, without paths."""
    defaults = dict(config_lib.leaves(Config()))
    changed = {name: value for name, value in config_lib.leaves(config) if value != defaults[name]}
    return json.loads(json.dumps({name: value for name, value in changed.items() if name not in PATH_SETTINGS}))


def run_cell(name: str, config: Config, workdir: Path, path: Path) -> bool:
    """Trains a cell or resumes its run, scores it and writes its file; False if the training was stopped before its end."""
    _, stopped = train_or_stop(config, workdir)
    if stopped:
        print(f"{name}: stopped; the same command resumes it")
        return False
    records = read_metrics(workdir / "metrics.jsonl")
    curve = {r["step"]: named(r, "valid/") for r in records if "valid/loss" in r}
    figures = {
        "cell": name,
        "seed": config.train.seed,
        "why": CELLS[name].why,
        "targets": _targets(CELLS[name]),
        "settings": changed_settings(config),
        "config_hash": config_lib.config_hash(config),
        "machine": common.machine(),
        "validation": curve,
        "rows": scores(config, workdir, decodings(config.objective.name, CELLS[name].preset)),
    }
    write(path, figures)
    return True


def _targets(cell: Cell) -> str:
    if not cell.distilled_by:
        return "raw"
    return f"distilled by {cell.distilled_by} with {cell.distilled_with}, read by {cell.readers}"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures as JSON, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def add_scores(path: Path, config: Config, workdir: Path) -> None:
    """Scores a finished cell by the decoding settings that its file lacks."""
    figures = _read(path)
    rows = {row["setting"]: row for row in figures["rows"]}
    settings = decodings(config.objective.name, CELLS[figures["cell"]].preset)
    rows |= {row["setting"]: row for row in scores(config, workdir, [s for s in settings if s not in rows])}
    write(path, figures | {"rows": [rows[setting] for setting in settings]})


def scores(config: Config, workdir: Path, settings: Sequence[str]) -> list[dict[str, Any]]:
    """Scores of the test split, a row for each decoding setting."""
    d = config.data
    sources, references = read_lines(f"{d.test}.{d.source_lang}"), read_lines(f"{d.test}.{d.target_lang}")
    generator = Generator.from_checkpoint(workdir)
    rows = []
    for setting in settings:
        rows.append({"setting": setting, **score(hypotheses(generator, workdir, setting, sources), references)})
        print(setting, {k: v for k, v in rows[-1].items() if isinstance(v, float)}, flush=True)
    return rows


def hypotheses(generator: Generator, workdir: Path, setting: str, sources: Sequence[str], name: str = "") -> list[str]:
    """The outputs of a run's model for these sources; kept in the run's directory, in a file of this name.

    By default the file has the name of the setting, and the sources are the test split.
    """
    path = workdir / "outputs" / f"{(name or setting).replace(':', '-')}.txt"
    newest = step_directories(workdir / "checkpoints")[-1]
    if path.exists() and path.stat().st_mtime > newest.stat().st_mtime:
        return read_lines(str(path))
    lines = [output.text for output in generator.generate(sources, **parse_setting(setting))]
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(path)
    return lines


def load_cells(results: Path, cells: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The files of the finished cells, in the order of `cells`: cell -> its seeds."""
    every = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    found = {cell: [figures for figures in every if figures["cell"] == cell] for cell in cells}
    return {cell: sorted(seeds, key=lambda figures: figures["seed"]) for cell, seeds in found.items() if seeds}


def run_missing(
    configs: Iterable[tuple[str, Config]], results: Path, run: Callable[[str, Config, str], bool], *, only_list: bool
) -> int:
    """Runs the cells that have no file of their settings, or lists which have one.

    Args:
      configs: a cell and its config, in the order of the runs.
      results: folder of the files.
      run: trains and scores a cell, given the cell, its config and the name of its file; False if it was stopped.
      only_list: print what is done and missing, and run nothing.

    Returns:
      The exit status: 1 if a cell was stopped.
    """
    for cell, config in configs:
        name = f"{cell}_seed{config.train.seed}"
        done = is_done(results / f"{name}.json", config)
        if only_list:
            print(f"{name}: {'done' if done else 'missing'}")
        elif not done and not run(cell, config, name):
            return 1
    return 0


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Paired bootstrap of the study's comparisons between cells whose runs are in --workdir.

    A cell without a run of the second seed stands with its first one.

    Returns:
      For each comparison and seed: `first` and `second` (run and decoding setting), and the figures of
      `study_report.paired`. Earlier rows stay whose runs are not in --workdir.
    """
    earlier = (_read(RESULTS / study_report.COMPARE_FILE) or {"comparisons": []})["comparisons"]
    rows = {(tuple(row["first"]), tuple(row["second"])): row for row in earlier}
    new = set()
    for sides, seed in itertools.product(COMPARISONS, SEEDS):
        found = [(_run_of(name, seed, args), setting) for name, setting in sides]
        key = tuple((workdir and workdir.name, setting) for workdir, setting in found)
        if any(workdir is None for workdir, _ in found) or key in new:
            continue
        d = config_of(CELLS[sides[0][0]], 0, args.data).data
        sources, references = read_lines(f"{d.test}.{d.source_lang}"), read_lines(f"{d.test}.{d.target_lang}")
        lines = [hypotheses(Generator.from_checkpoint(w), w, setting, sources) for w, setting in found]
        new.add(key)
        rows[key] = {"first": key[0], "second": key[1]} | study_report.paired(*lines, references)
        print(rows[key], flush=True)
    return list(rows.values())


def _run_of(name: str, seed: int, args: argparse.Namespace) -> Path | None:
    """The finished run of a cell with this seed, else with seed 0; None if there is neither."""
    finished = [args.workdir / result_path(name, s).stem for s in (seed, 0) if _is_trained(name, s, args)]
    return finished[0] if finished else None


def decodings(objective: str, preset: str = "study") -> tuple[str, ...]:
    """The decoding settings that score the models of an objective."""
    ar = ("ar:beam=5", "ar:beam=1")
    nar = tuple(f"nar:passes={n},length_beam=3" for n in (1, 4, 10))
    if preset != "study":
        # After long runs the penalty 0.5 has the best BLEU on the validation split with raw targets, none with distilled ones.
        penalty = "blank_penalty=0.5"
        ctc = ("ctc:beam=1", f"ctc:beam=1,{penalty}", "ctc:beam=5", f"ctc:beam=20,{penalty},rerank=ar")
        reranked = "nar:passes=4,length_beam=5,rerank=ar"
        return {"ar": ar, "janus": (*ar, *nar, reranked), "janus_ctc": (*ar, *ctc)}[objective]
    # Of the blank penalties 0, 0.5, ..., 3 the penalty 1 had the best BLEU on the validation split.
    ctc = ("ctc:beam=1", "ctc:beam=5", "ctc:beam=1,blank_penalty=1", "ctc:beam=5,blank_penalty=1")
    reranked_nar, reranked_ctc = "nar:passes=4,length_beam=3,rerank=ar", "ctc:beam=5,blank_penalty=1,rerank=ar"
    return {
        "ar": ar,
        "cmlm": nar,
        "janus": (*ar, *nar, reranked_nar),
        "ctc": ctc,
        "janus_ctc": (*ar, *ctc, reranked_ctc),
        "janus_all": (*ar, *nar, reranked_nar, *ctc, reranked_ctc),
    }[objective]


def named(record: dict[str, Any], prefix: str) -> dict[str, float]:
    """The metrics of a record whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): round(value, 5) for name, value in record.items() if name.startswith(prefix)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cell",
        action="append",
        choices=list(CELLS),
        help="repeatable; default: all, with --speed and --step_seconds those of preset study",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/study"))
    parser.add_argument(
        "--data",
        help="folder with train, val and test_2016_flickr (.de, .en) and deen4000.model; default: data/multi30k",
    )
    parser.add_argument("--prepared", help="folder of the prepared dataset; created if absent")
    parser.add_argument("--list", action="store_true", help="only list the cells")
    parser.add_argument("--rescore", action="store_true", help="score the missing settings of finished cells")
    parser.add_argument("--table", action="store_true", help="only print the tables of the results")
    parser.add_argument("--compare", action="store_true", help="only compare trained cells by paired bootstrap")
    parser.add_argument("--plot", type=Path, help="only draw the results as an SVG file")
    parser.add_argument("--plot_speed", type=Path, help="only draw quality against speed as an SVG file")
    parser.add_argument("--speed", action="store_true", help="only time the decoding of the trained --cell ...")
    parser.add_argument(
        "--step_seconds",
        type=int,
        metavar="N",
        help="only time the training steps of the cells, on the first N batches",
    )
    parser.add_argument("--sentences", type=int, default=100, help="sentences of the test split to time one by one")
    parser.add_argument("--runs", type=int, default=3, help="timed runs; the median counts")
    args = parser.parse_args(argv)
    if args.compare:
        write(RESULTS / study_report.COMPARE_FILE, {"comparisons": compare(args)})
        return 0
    if args.table or args.plot or args.plot_speed:
        cells = study_report.load(RESULTS)
        if args.plot_speed:
            study_report.plot_speed(cells, _read(RESULTS / study_report.LONG_SPEED_FILE), args.plot_speed)
        if args.plot:
            study_report.plot(cells, args.plot)
        if args.table:
            times = [_read(RESULTS / name) for name in (study_report.STEP_FILE, study_report.LONG_STEP_FILE)]
            speeds = [_read(RESULTS / name) for name in (study_report.SPEED_FILE, study_report.LONG_SPEED_FILE)]
            print(study_report.table(cells, [figures for figures in times if figures]))
            for figures in filter(None, speeds):
                print(study_report.speed_table(figures))
        return 0
    parallel.start()
    if args.step_seconds:
        names = args.cell or _short_cells()
        configs = {name: config_of(CELLS[name], 0, args.data, args.prepared, args.workdir) for name in names}
        file = study_report.STEP_FILE if CELLS[names[0]].preset == "study" else study_report.LONG_STEP_FILE
        write(RESULTS / file, study_report.step_seconds(configs, args.step_seconds))
        return 0
    if args.speed:
        names = args.cell or _short_cells()
        config = config_of(CELLS[names[0]], 0, args.data)
        languages = (config.data.source_lang, config.data.target_lang)
        workdirs = {name: args.workdir / result_path(name, args.seed).stem for name in names}
        cells = {
            name: (path, decodings(config_of(CELLS[name], 0).objective.name, CELLS[name].preset))
            for name, path in workdirs.items()
        }
        if absent := [name for name in names if not _is_trained(name, args.seed, args)]:
            parser.error(f"--speed: train these cells first, or name others with --cell: {', '.join(absent)}")
        test = tuple(f"{config.data.test}.{language}" for language in languages)
        file = study_report.SPEED_FILE if CELLS[names[0]].preset == "study" else study_report.LONG_SPEED_FILE
        write(RESULTS / file, study_report.speed(cells, test, args.sentences, args.runs))
        return 0
    for name in args.cell or CELLS:
        config = config_of(CELLS[name], args.seed, args.data, args.prepared, args.workdir)
        path = result_path(name, args.seed)
        done = is_done(path, config)
        print(f"{name}: {'done' if done else 'to run'}; {CELLS[name].why}", flush=True)
        if done and args.rescore:
            add_scores(path, config, args.workdir / path.stem)
        if not done and not args.list and not _run_with_sources(name, args.seed, args):
            return 1
    return 0


def _short_cells() -> list[str]:
    return [name for name, cell in CELLS.items() if cell.preset == "study"]


def _run_with_sources(name: str, seed: int, args: argparse.Namespace) -> bool:
    """Trains a cell, and first those whose model or translations it needs and that have no finished run in --workdir.

    Returns:
      False if a training was stopped before its end: then nothing is made of what it has.
    """
    cell = CELLS[name]
    for source in filter(None, dict.fromkeys((cell.start, cell.distilled_by))):
        if not _is_trained(source, 0, args):
            print(f"{name} needs {source}", flush=True)
            if not _run_with_sources(source, 0, args):
                return False
    config = config_of(cell, seed, args.data, args.prepared, args.workdir)
    if cell.distilled_by and not Path(config.data.prepared).exists():
        raw = config_of(CELLS[cell.distilled_by], 0, args.data, args.prepared).data.prepared
        distill(
            Generator.from_checkpoint(args.workdir / cell.distilled_by), raw, config.data.prepared, checkpoint=cell.distilled_by,
            readers=cell.readers, **parse_setting(cell.distilled_with),
        )  # fmt: skip
    if not Path(config.data.prepared).exists():
        prepare(config)
    path = result_path(name, seed)
    return run_cell(name, config, args.workdir / path.stem, path)


def _is_trained(name: str, seed: int, args: argparse.Namespace) -> bool:
    config = config_of(CELLS[name], seed, args.data, args.prepared, args.workdir)
    folder = args.workdir / result_path(name, seed).stem / "checkpoints"
    steps = step_directories(folder) if folder.exists() else []
    return bool(steps) and int(steps[-1].name) == config.train.steps


if __name__ == "__main__":
    sys.exit(main())
