"""The results of benchmarks/study.py as tables and a plot, and the timing of its cells."""

import dataclasses
import functools
import gc
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax

from benchmarks import common
from benchmarks.study_cells import CELLS
from janus_jax import text
from janus_jax.config import Config, scheduled
from janus_jax.data import Prepared, TrainBatches
from janus_jax.decode import Generator
from janus_jax.decode.io import read_lines
from janus_jax.evaluate import parse_setting
from janus_jax.model import Janus
from janus_jax.objective.joint import active_terms
from janus_jax.train.step import init_state, make_train_step
from janus_jax.types import Specials

# Title and decoding setting of each column.
COLUMNS = (
    ("AR beam 5", "ar:beam=5"),
    ("AR greedy", "ar:beam=1"),
    ("NAR 1", "nar:passes=1,length_beam=3"),
    ("NAR 4", "nar:passes=4,length_beam=3"),
    ("NAR 10", "nar:passes=10,length_beam=3"),
    ("NAR 4, reranked", "nar:passes=4,length_beam=3,rerank=ar"),
    ("NAR 4, 5 lengths, reranked", "nar:passes=4,length_beam=5,rerank=ar"),
    ("CTC", "ctc:beam=1"),
    ("CTC beam 5", "ctc:beam=5"),
    ("CTC, penalty", "ctc:beam=1,blank_penalty=1"),
    ("beam 5, penalty", "ctc:beam=5,blank_penalty=1"),
    ("reranked", "ctc:beam=5,blank_penalty=1,rerank=ar"),
    ("CTC, penalty 0.5", "ctc:beam=1,blank_penalty=0.5"),
    ("20, penalty 0.5, reranked", "ctc:beam=20,blank_penalty=0.5,rerank=ar"),
)
_NAR = ("nar:passes=10,length_beam=3", "ctc:beam=5,blank_penalty=1")
SPEED_FILE, LONG_SPEED_FILE = "speed.json", "speed_cpu.json"
STEP_FILE, LONG_STEP_FILE = "step_seconds.json", "step_seconds_cpu.json"
COMPARE_FILE = "bootstrap.json"
NO_CELLS = (SPEED_FILE, LONG_SPEED_FILE, STEP_FILE, LONG_STEP_FILE, COMPARE_FILE)


def load(folder: Path) -> list[dict[str, Any]]:
    """The finished cells in the order of `CELLS`; seeds of a cell are neighbours."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name not in NO_CELLS]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    order = list(CELLS)
    return sorted((r for r in results if r["cell"] in order), key=lambda r: (order.index(r["cell"]), r["seed"]))


def table(cells: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]] = ()) -> str:
    """BLEU / chrF of every cell as a Markdown table.

    Args:
      cells: results of `load`.
      times: results of `step_seconds`. With them the table has the seconds of all training steps, without those of the
        cell that a cell starts from.
    """
    titles = [title for title, _ in COLUMNS] + ["validation NLL"] + ["training s"] * bool(times)
    lines = ["| cell | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(titles)]
    for cell in cells:
        scores = {row["setting"]: row for row in cell["rows"]}
        shown = [f"{scores[s]['bleu']:.1f} / {scores[s]['chrf']:.1f}" if s in scores else "" for _, s in COLUMNS]
        last = cell["validation"][str(max(map(int, cell["validation"])))]
        shown.append(", ".join(f"{last[name]:.2f}" for name in ("nll/ar", "nll/nar", "nll/ctc") if name in last))
        if times:
            seconds = next(filter(None, (training_seconds(figures, cell["cell"]) for figures in times)), None)
            shown.append("" if seconds is None else f"{seconds:.0f}")
        lines.append(f"| {label(cell)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def paired(first: Sequence[str], second: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Two systems' BLEU by sacreBLEU's paired bootstrap of 1000 samples.

    Returns:
      `bleu_first`, `bleu_second`, half the width of their 95% intervals `interval_first`, `interval_second`, and
      `p_value`: how probable a difference as large is if the two are equally good.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    test = PairedTest(
        [("first", list(first)), ("second", list(second))], {"BLEU": BLEU(references=[list(references)])}, None,
        test_type="bs", n_samples=1000,
    )  # fmt: skip
    one, two = test()[1]["BLEU"]
    return {
        "bleu_first": one.score, "interval_first": one.ci, "bleu_second": two.score, "interval_second": two.ci,
        "p_value": two.p_value,
    }  # fmt: skip


def label(cell: dict[str, Any]) -> str:
    """The name of a cell, and its seed if the seed is not 0."""
    return f"`{cell['cell']}`" + (f", seed {cell['seed']}" if cell["seed"] else "")


# The cells that `plot` names: baselines of one half are lines, the others are points.
_LINES = {"ar_content": "AR alone", "cmlm": "mask-predict alone (cmlm)", "ctc": "CTC alone"}
# A point's name, where it stands from the point (in points), and which side of it is there.
_POINTS = {
    "janus": ("janus: joint, as released", (0, 9), "left"),
    "janus_late_teacher_content_ar10": ("the recipe (AR's weight is 10)", (-16, -3), "right"),
    "janus_late_teacher_content_ar3": ("weight 3", (0, 7), "center"),
    "janus_late_teacher_content": ("weight 1", (-8, -3), "right"),
    "ctc_late_teacher_content_ar10": ("the recipe with CTC", (-8, -3), "right"),
}


def plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws BLEU of AR decoding against BLEU of parallel decoding, as an SVG file.

    Only the cells that carry the message are drawn, with their names beside them: the released joint loss, the recipe
    with falling weights of AR (joined by a line), and what each half reaches alone. The tables hold the others.
    """
    import matplotlib as mpl
    import matplotlib.figure

    figure = mpl.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    path_of_weights = []
    named: set[str] = set()
    for cell in cells:
        name, scores = cell["cell"], {row["setting"]: row["bleu"] for row in cell["rows"]}
        ar, parallel = scores.get("ar:beam=5", 0.0), max((scores[s] for s in _NAR if s in scores), default=0.0)
        first = name not in named
        named.add(name)
        if name in _LINES and first:
            style = {"color": "gray", "linestyle": "--", "linewidth": 1}
            where = {"color": "dimgray", "fontsize": 9, "textcoords": "offset points"}
            if ar:
                axes.axvline(ar, **style)
                axes.annotate(_LINES[name], (ar, 8), xytext=(4, 0), rotation=90, **where)
            else:
                axes.axhline(parallel, **style)
                axes.annotate(_LINES[name], (12, parallel), xytext=(0, 3), **where)
        elif name in _POINTS:
            colour = "tab:orange" if "ctc" in name else "tab:blue"
            axes.plot(ar, parallel, "o", color=colour)
            if first:
                text, offset, side = _POINTS[name]
                where = {"xytext": offset, "textcoords": "offset points", "ha": side}
                axes.annotate(text, (ar, parallel), fontsize=9, color=colour, **where)
            if first and "late_teacher" in name and "ctc" not in name:
                path_of_weights.append((ar, parallel))
    if path_of_weights:
        axes.plot(*zip(*path_of_weights, strict=True), color="tab:blue", linewidth=1, alpha=0.5, zorder=0)
    axes.set(
        xlim=(0, 34), ylim=(0, 25), title="At equal updates, the recipe keeps AR's quality and trains the parallel half"
    )
    axes.set_xlabel("AR half: BLEU of beam 5 (test_2016_flickr)")
    axes.set_ylabel("parallel half: BLEU of 10 passes, or CTC, beam 5")
    # No date and fixed ids: the same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})


def plot_speed(cells: Sequence[dict[str, Any]], speeds: dict[str, Any], path: Path) -> None:
    """Draws BLEU against sentences/s at batch 1 and 32 for each decoding setting of each timed cell, as an SVG file.

    Args:
      cells: results of `load`; the first seed of each cell is drawn.
      speeds: results of `speed`.
      path: the file.
    """
    import matplotlib as mpl
    import matplotlib.figure

    titles = {setting: title for title, setting in COLUMNS}
    rates = {(r["cell"], r["setting"], r["batch"]): r["sentences_per_second"] for r in speeds["rows"]}
    figure = matplotlib.figure.Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    shown = [cell for cell in cells if not cell["seed"] and any(name == cell["cell"] for name, _, _ in rates)]
    for batch, axes in zip((1, 32), panels, strict=True):
        for cell, marker in zip(shown, "os^Dv<>P*X", strict=False):
            points = [
                (rates[cell["cell"], row["setting"], batch], row["bleu"], titles[row["setting"]])
                for row in cell["rows"]
                if (cell["cell"], row["setting"], batch) in rates
            ]
            if not points:
                continue
            axes.plot(*zip(*[point[:2] for point in points], strict=True), marker, label=cell["cell"])
            for rate, bleu, title in points:
                axes.annotate(title, (rate, bleu), textcoords="offset points", xytext=(4, 3), fontsize=7)
        axes.set_xscale("log")
        axes.set_xlabel(f"sentences/s, batch {batch}")
        axes.grid(alpha=0.3, which="both")
        axes.margins(0.15)
    panels[0].set_ylabel("BLEU, test_2016_flickr")
    panels[0].legend(fontsize=8)
    # No date and fixed ids: the same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})


def speed(
    cells: dict[str, tuple[Path, Sequence[str]]], test: tuple[str, str], sentences: int, runs: int
) -> dict[str, Any]:
    """Sentences/s of each model by its decoding settings, at batch 1 and 32; settings take turns in one run.

    Args:
      cells: cell -> workdir of its run, and the settings.
      test: source file and reference file.
      sentences: number of test sentences at batch 1; at batch 32 three times as many.
      runs: number of timed runs; the result is their median.
    """
    sources = read_lines(test[0])
    calls = {}
    for name, (workdir, settings) in cells.items():
        generator = Generator.from_checkpoint(workdir)
        for setting in settings:
            for batch, count in ((1, sentences), (32, max(32, 3 * sentences // 32 * 32))):
                calls[name, setting, batch] = (generator, sources[:count], batch)
    rates_by_call: dict[tuple, list[float]] = {key: [] for key in calls}
    for turn in range(runs + 1):
        for key, (generator, lines, batch) in calls.items():
            settings = parse_setting(key[1])
            (seconds,) = common.seconds(
                lambda g=generator, x=lines, b=batch, s=settings: [
                    g.generate(x[i : i + b], **s, batch_tokens=10**6)[0].tokens for i in range(0, len(x), b)
                ],
                1,
            )
            if turn:  # the first turn compiles
                rates_by_call[key].append(len(lines) / seconds)
    rows = [
        {"cell": name, "setting": setting, "batch": batch, "sentences_per_second": round(median(rates), 1)}
        for (name, setting, batch), rates in rates_by_call.items()
    ]
    return {
        "machine": common.machine(),
        "matmul_gflops_per_second": common.matmul_flops_per_second() / 1e9,
        "rows": rows,
    }


def step_seconds(configs: dict[str, Config], steps: int) -> dict[str, Any]:
    """Seconds of a training step of each cell, for every set of loss terms of its schedule.

    Each kind of step takes turns with the first kind. The result is the ratio of the two times, multiplied by the
    median time of the first kind over the whole run. (All kinds in one set of turns would need more memory maps for
    compiled programs than Linux allows a process.)

    Args:
      configs: cell -> config.
      steps: number of steps from the start whose batches are timed; the result is the mean over them.

    Returns:
      `machine`, and `cells`: cell -> list of {`terms`, `steps`: number of the cell's steps with them, `seconds`}.
    """
    kinds = [
        (name, config, terms, count) for name, config in configs.items() for terms, count in _phases(config).items()
    ]
    reference = _step_runner(*kinds[0][1:3], steps)
    ratios, references = [], []
    for _, config, terms, _ in kinds:
        run = reference if (config, terms) == kinds[0][1:3] else _step_runner(config, terms, steps)
        turns = [(common.seconds(run, 1)[0] / steps, common.seconds(reference, 1)[0] / steps) for _ in range(3)]
        ratios.append(median(seconds / reference_seconds for seconds, reference_seconds in turns))
        references += [reference_seconds for _, reference_seconds in turns]
        del run
        gc.collect()
    cells: dict[str, Any] = {}
    for (name, _, terms, count), ratio in zip(kinds, ratios, strict=True):
        phase = {"terms": list(terms), "steps": count, "seconds": round(ratio * median(references), 4)}
        cells.setdefault(name, []).append(phase)
    return {"machine": common.machine(), "cells": cells}


def _phases(config: Config) -> Counter[tuple[str, ...]]:
    """Sets of terms -> number of steps of the run that compute them."""
    objective = scheduled(config)
    return Counter(active_terms(objective, step) for step in range(config.train.steps))


def _step_runner(config: Config, terms: tuple[str, ...], steps: int) -> Callable[[], Any]:
    """A compiled function that does a training step on each of the first `steps` batches, always from a new state."""
    prepared = Prepared.open(config.data.prepared, config)
    model = dataclasses.replace(config.model, vocab_size=text.load(prepared.tokenizer_bytes).vocab_size)
    config = dataclasses.replace(config, model=model)
    net, train_batches = Janus(model, Specials()), TrainBatches(prepared, config)
    batches = [jax.device_put(train_batches.batch_at(step)) for step in range(steps)]
    state = jax.jit(functools.partial(init_state, net, config))()
    step = jax.jit(make_train_step(net, config, terms))

    def run() -> Any:
        return [step(state, batch)[1] for batch in batches]

    jax.block_until_ready(run())
    return run


def training_seconds(figures: dict[str, Any], name: str) -> float | None:
    """Seconds of all steps of a cell from the results of `step_seconds`; None if the cell is not in them."""
    phases = figures["cells"].get(name)
    return phases and sum(phase["steps"] * phase["seconds"] for phase in phases)


def speed_table(figures: dict[str, Any]) -> str:
    """The results of `speed` as a Markdown table."""
    lines = ["| model | decoding | sentences/s at batch 1 | 32 |", "|---|---|--:|--:|"]
    rates = {(r["cell"], r["setting"], r["batch"]): r["sentences_per_second"] for r in figures["rows"]}
    for name, setting in dict.fromkeys((cell, setting) for cell, setting, _ in rates):
        lines.append(f"| `{name}` | {setting} | {rates[name, setting, 1]} | {rates[name, setting, 32]} |")
    return "\n".join(lines)
