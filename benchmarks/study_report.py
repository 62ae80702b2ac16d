"""What benchmarks/study.py has found, as tables and a plot."""

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

# Columns: title and setting.
COLUMNS = (
    ("AR beam 5", "ar:beam=5"),
    ("AR greedy", "ar:beam=1"),
    ("NAR 1", "nar:passes=1,length_beam=3"),
    ("NAR 4", "nar:passes=4,length_beam=3"),
    ("NAR 10", "nar:passes=10,length_beam=3"),
    ("NAR 4, reranked", "nar:passes=4,length_beam=3,rerank=ar"),
    ("CTC", "ctc:beam=1"),
    ("CTC beam 5", "ctc:beam=5"),
    ("CTC, penalty", "ctc:beam=1,blank_penalty=1"),
    ("beam 5, penalty", "ctc:beam=5,blank_penalty=1"),
    ("reranked", "ctc:beam=5,blank_penalty=1,rerank=ar"),
)
_NAR = ("nar:passes=10,length_beam=3", "ctc:beam=5,blank_penalty=1")
SPEED_FILE, STEP_FILE = "speed.json", "step_seconds.json"


def load(folder: Path) -> list[dict[str, Any]]:
    """The finished cells, in the order of `CELLS`, seeds of a cell together."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name not in (SPEED_FILE, STEP_FILE)]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    order = list(CELLS)
    return sorted((f for f in found if f["cell"] in order), key=lambda f: (order.index(f["cell"]), f["seed"]))


def table(cells: Sequence[dict[str, Any]], times: dict[str, Any] | None = None) -> str:
    """BLEU / chrF of every cell, a Markdown table; with `times` of `step_seconds` also the seconds of all training steps."""
    titles = [title for title, _ in COLUMNS] + ["validation NLL"] + ["training s"] * bool(times)
    lines = ["| cell | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(titles)]
    for cell in cells:
        scores = {row["setting"]: row for row in cell["rows"]}
        shown = [f"{scores[s]['bleu']:.1f} / {scores[s]['chrf']:.1f}" if s in scores else "" for _, s in COLUMNS]
        last = cell["validation"][str(max(map(int, cell["validation"])))]
        shown.append(", ".join(f"{last[name]:.2f}" for name in ("nll/ar", "nll/nar", "nll/ctc") if name in last))
        if times:
            seconds = training_seconds(times, cell["cell"])
            shown.append("" if seconds is None else f"{seconds:.0f}")
        lines.append(f"| {label(cell)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def label(cell: dict[str, Any]) -> str:
    """A cell's name, and its seed if it is not the first."""
    return f"`{cell['cell']}`" + (f", seed {cell['seed']}" if cell["seed"] else "")


def plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """BLEU of each cell's two halves against each other, an SVG; baselines of one half stand on the axes.

    Points are numbered and the numbers explained beside them, since names would hide each other; seeds share a number.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    numbers: dict[str, int] = {}
    for cell in cells:
        scores = {row["setting"]: row["bleu"] for row in cell["rows"]}
        ar = scores.get("ar:beam=5", 0.0)
        nar = max((scores[s] for s in _NAR if s in scores), default=0.0)
        colour = "tab:orange" if "ctc" in cell["cell"] else "tab:blue"
        marker = "o" if ar and nar else "^"
        if (name := cell["cell"]) in numbers:
            axes.plot(ar, nar, marker, color=colour)
            continue
        numbers[name] = len(numbers) + 1
        axes.plot(ar, nar, marker, color=colour, label=f"{numbers[name]}  {name}")
        beside = (3, -10 if numbers[name] % 2 else 4)  # neighbours in the list are often neighbours in the plot
        axes.annotate(str(numbers[name]), (ar, nar), textcoords="offset points", xytext=beside, fontsize=8)
    figure.legend(loc="outside right upper", fontsize=8)
    axes.set_xlabel("AR, beam 5 (BLEU, test_2016_flickr)")
    axes.set_ylabel("NAR, 10 passes, or CTC, beam 5, blank penalty (BLEU)")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    # Without date and with fixed ids, so that the same figures give the same file.
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})


def speed(workdirs: dict[str, Path], test: tuple[str, str], sentences: int, runs: int) -> dict[str, Any]:
    """Sentences/s of every way of decoding each model, alone and in batches of 32, in turns in one run.

    Args:
      workdirs: of the cells' runs.
      test: source and reference file.
      sentences: so many of the test split, at batch 1; at batch 32 three times as many.
      runs: timed runs, of which the median counts.
    """
    sources = read_lines(test[0])
    calls = {}
    for name, workdir in workdirs.items():
        generator = Generator.from_checkpoint(workdir)
        for _, setting in COLUMNS:
            mode = setting.split(":")[0]
            if mode not in generator.trained or ("rerank" in setting and "ar" not in generator.trained):
                continue
            for batch, count in ((1, sentences), (32, max(32, 3 * sentences // 32 * 32))):
                calls[name, setting, batch] = (generator, sources[:count], batch)
    times: dict[tuple, list[float]] = {key: [] for key in calls}
    for turn in range(runs + 1):
        for key, (generator, lines, batch) in calls.items():
            settings = parse_setting(key[1])
            (seconds,) = common.seconds(
                lambda g=generator, x=lines, b=batch, s=settings: [
                    g.generate(x[i : i + b], **s, batch_tokens=10**6)[0].tokens for i in range(0, len(x), b)
                ],
                1,
            )
            if turn:  # the first compiles
                times[key].append(len(lines) / seconds)
    rows = [
        {"cell": name, "setting": setting, "batch": batch, "sentences_per_second": round(median(found), 1)}
        for (name, setting, batch), found in times.items()
    ]
    return {
        "machine": common.machine(),
        "matmul_gflops_per_second": common.matmul_flops_per_second() / 1e9,
        "rows": rows,
    }


def step_seconds(configs: dict[str, Config], steps: int) -> dict[str, Any]:
    """Seconds of a training step of each cell: for every set of loss terms that it trains with, how many of its steps have
    that, and the mean over the batches of the first `steps` steps.

    Every kind of step is timed in turns with the first one, whose median over the whole run turns the ratios into seconds.
    (All kinds in one set of turns hold more compiled programs than Linux gives a process memory maps for.)

    Args:
      configs: of the cells; steps: whose batches are timed.
    """
    kinds = [
        (name, config, terms, count) for name, config in configs.items() for terms, count in _phases(config).items()
    ]
    reference = _step_runner(*kinds[0][1:3], steps)
    ratios, references = [], []
    for _, config, terms, _ in kinds:
        run = _step_runner(config, terms, steps)
        turns = [(common.seconds(run, 1)[0] / steps, common.seconds(reference, 1)[0] / steps) for _ in range(3)]
        ratios.append(median(own / beside for own, beside in turns))
        references += [beside for _, beside in turns]
        del run
        gc.collect()
    found: dict[str, Any] = {}
    for (name, _, terms, count), ratio in zip(kinds, ratios, strict=True):
        phase = {"terms": list(terms), "steps": count, "seconds": round(ratio * median(references), 4)}
        found.setdefault(name, []).append(phase)
    return {"machine": common.machine(), "cells": found}


def _phases(config: Config) -> Counter[tuple[str, ...]]:
    """How many steps of the run compute which terms."""
    objective = scheduled(config)
    return Counter(active_terms(objective, step) for step in range(config.train.steps))


def _step_runner(config: Config, terms: tuple[str, ...], steps: int) -> Callable[[], Any]:
    """Does the training steps of the first `steps` batches, from a fresh state each; compiled already."""
    prepared = Prepared.open(config.data.prepared, config)
    model = dataclasses.replace(config.model, vocab_size=text.load(prepared.tokenizer_bytes).vocab_size)
    config = dataclasses.replace(config, model=model)
    net, made = Janus(model, Specials()), TrainBatches(prepared, config)
    batches = [jax.device_put(made.batch_at(step)) for step in range(steps)]
    state = jax.jit(functools.partial(init_state, net, config))()
    step = jax.jit(make_train_step(net, config, terms))

    def run() -> Any:
        return [step(state, batch)[1] for batch in batches]

    jax.block_until_ready(run())
    return run


def training_seconds(figures: dict[str, Any], name: str) -> float | None:
    """Seconds that all steps of a cell take by the figures of `step_seconds`; None where it isn't among them."""
    phases = figures["cells"].get(name)
    return phases and sum(phase["steps"] * phase["seconds"] for phase in phases)


def speed_table(figures: dict[str, Any]) -> str:
    """The figures of `speed` as a Markdown table."""
    lines = ["| model | decoding | sentences/s at batch 1 | 32 |", "|---|---|--:|--:|"]
    found = {(r["cell"], r["setting"], r["batch"]): r["sentences_per_second"] for r in figures["rows"]}
    for name, setting in dict.fromkeys((cell, setting) for cell, setting, _ in found):
        lines.append(f"| `{name}` | {setting} | {found[name, setting, 1]} | {found[name, setting, 32]} |")
    return "\n".join(lines)
