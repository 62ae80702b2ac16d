"""Progress of a run: a bar or lines on stderr, metrics.jsonl, TensorBoard, a plot of the loss curves."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from janus_jax import files
from janus_jax.metrics import read_metrics
from janus_jax.objective.terms import TERMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Families whose targets may not fit their rows: those with a loss of whole sentences.
_SENTENCE_FAMILIES = [family for term in TERMS.values() if term.kind == "sentence" for family in term.families]
MANY_UNFIT = 0.1  # share of the targets that do not fit their rows, above which the log warns


class RunLog:
    """Writes records of metrics to stderr, metrics.jsonl and TensorBoard.

    A resumed run writes the same records as an uninterrupted one, except `time/...`, which describe the machine.

    Args:
      workdir: gets metrics.jsonl, tensorboard/ and curves.png.
      start_step: records of later steps are removed; the run writes them again.
      total: steps of the whole run.
      active: False on all processes but the first: they write nothing.
    """

    def __init__(self, workdir: Path, start_step: int, total: int, active: bool = True):
        self.active, self._total = active, total
        self._announced: set[tuple[str, ...]] = set()
        self._unfit: set[str] = set()  # families whose targets that do not fit were reported
        self._bar = None
        if not active:
            return
        # Imported here, on the one process that writes: it imports torch where that is installed, which takes seconds.
        from tensorboardX import SummaryWriter

        self.path = workdir / "metrics.jsonl"
        _truncate(self.path, start_step)
        self._file = self.path.open("a")
        # The queue has no limit: once its thread has failed, a full one would block this process for ever. `record` looks.
        self._board = SummaryWriter(str(workdir / "tensorboard"), max_queue=0, purge_step=start_step + 1)
        self._bar = tqdm(total=total, initial=start_step, unit="step", file=sys.stderr) if sys.stderr.isatty() else None

    def announce(self, step: int, terms: tuple[str, ...], settled: int = 0) -> None:
        """Says that a step computes these loss terms, if none before did: its programs are to be compiled.

        Args:
          step, terms: see above.
          settled: the step at which all terms have their last weight.
        """
        if terms not in self._announced:  # with ar_every, sets of terms alternate
            self._announced.add(terms)
            change = f"; weights change until step {settled}, so loss/total may rise" if step < settled else ""
            self.message(
                f"step {step}: the first with {', '.join(terms)}; the first batch of each shape waits for its program to "
                f"compile{change}"
            )

    def advance(self, figures: dict[str, float]) -> None:
        """Moves the bar by a step. It shows these figures of `Meter.figures` until the next ones; {} changes nothing."""
        if self._bar:
            if figures:
                names = {"tokens/s": "tokens_per_second", "MFU": "flops_utilisation", "goodput": "goodput"}
                shown = {short: figures.get(f"time/{name}", 0.0) for short, name in names.items()}
                self._bar.set_postfix({short: f"{value:.3g}" for short, value in shown.items()}, refresh=False)
            self._bar.update()

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one record of scalars."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if not self._board.file_writer.event_writer._worker.is_alive():  # an error of writing ends this thread, unheard
            raise OSError("TensorBoard's events could not be written")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        shown = [f"{name} {value:.4g}" for name, value in metrics.items() if _shown(name)]
        self._warn_of_unfit(step, metrics)
        if seconds := metrics.get("time/seconds_per_step", 0.0) * (self._total - step):
            shown.append(f"about {seconds / 60:.0f} min left" if seconds >= 60 else "less than a minute left")
        self.message("  ".join([f"step {step}/{self._total}", *shown]))

    def _warn_of_unfit(self, step: int, metrics: dict[str, float]) -> None:
        """Says once a family that it learns from few targets: its loss is 0 where they do not fit, which looks good."""
        for family in _SENTENCE_FAMILIES:
            share = metrics.get(f"{family}/unfit", 0.0)
            if share > MANY_UNFIT and family not in self._unfit:
                self._unfit.add(family)
                self.message(
                    f"step {step}: warning: {share:.0%} of the targets are too long for their {family.upper()} rows, and their loss "
                    f"is 0; raise config.model.{family}_ratio, or check the targets"
                )

    def sync(self) -> None:
        """Makes the records survive a loss of power."""
        if self.active:
            os.fsync(self._file.fileno())

    def message(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        with contextlib.suppress(OSError):  # a closed stderr or a lost terminal must not end the run
            if self._bar:
                self._bar.write(text, file=sys.stderr)
            elif self.active:
                print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the files. Records are on disk already; an error of writing was raised by `record`."""
        if not self.active:
            return
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()
        if self._bar:
            self._bar.close()


# A step's metrics that are recorded as they are, not as means over a log interval.
_NOT_AVERAGED = ("learning_rate", "weight/")


class IntervalMeans:
    """Means of the step metrics since the last record. (The examples of a batch have similar lengths, so that the loss of
    one step says little.)

    Args:
      steps, sums, skipped: the result of `state`, to resume within an interval.
    """

    def __init__(
        self, steps: dict[str, int] | int | None = None, sums: dict[str, float] | None = None, skipped: int = 0
    ):
        self.skipped = skipped  # steps of the whole run that were not finite
        # Steps are counted by name, since a term without weight is not computed. (Older checkpoints have one count.)
        self._sums = dict(sums or {})
        self._steps = dict.fromkeys(self._sums, steps) if isinstance(steps, int) else dict(steps or {})

    def add(self, values: dict[str, float]) -> None:
        """Adds the metrics of a step; the learning rate and the scheduled weights are left out."""
        for name, value in values.items():
            if not name.startswith(_NOT_AVERAGED):
                self._steps[name] = self._steps.get(name, 0) + 1
                self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean of each metric ({} if no step was added); starts the next interval."""
        means = {name: value / self._steps[name] for name, value in self._sums.items()}
        self._steps, self._sums = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """The unfinished interval as JSON values, for the checkpoint."""
        return {"steps": dict(self._steps), "sums": dict(self._sums), "skipped": self.skipped}


# What curves.png shows, a panel each: title, unit, and how the names of its metrics begin behind "valid/". A panel without
# metrics is left out.
_PANELS = (
    ("negative log-likelihood", "nats per token", "nll/"),
    ("symmetric divergence", "nats per token", "loss/kl_"),
    ("length loss", "nats per sentence", "loss/length"),
    ("drafts that a round would accept", "tokens", "heads/"),
    ("BLEU of the validation split", "BLEU", "bleu_"),
)
# What a metric is about -> color and marker, in the order of the legend. A family has one color in all panels. The colors
# are those of Okabe and Ito, which the color-blind tell apart; the markers tell lines apart without colors.
_LINES = {
    "ar": ("#0072b2", "o"), "nar": ("#d55e00", "s"), "aux": ("#009e73", "^"), "ctc": ("#cc79a7", "D"), "dag": ("#b8860b", "v"),
    "ar_nar": ("#d55e00", "s"), "ar_aux": ("#009e73", "^"), "nar_aux": ("#56b4e9", "P"), "ar_ctc": ("#cc79a7", "D"),
    "ar_dag": ("#b8860b", "v"), "length": ("#0072b2", "o"), "accepted": ("#0072b2", "o"),
}  # fmt: skip


def plot_curves(workdir: Path) -> Path:
    """Draws the metrics of `_PANELS` in metrics.jsonl against the step, training and validation, to curves.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = workdir / "curves.png"
    partial = workdir / "curves.partial.png"
    FigureCanvasAgg(curves(read_metrics(workdir / "metrics.jsonl"))).print_png(str(partial))
    os.replace(partial, path)
    return path


def curves(records: list[dict[str, Any]]) -> "Figure":
    """The figure of `plot_curves`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = {name for record in records for name in record}
    panels = []
    for title, unit, prefix in _PANELS:
        drawn = [name for name in names if name.removeprefix("valid/").startswith(prefix)]
        panels += [(title, unit, sorted(drawn, key=_place))] if drawn else []
    columns = min(len(panels), 2) or 1
    rows = -(-len(panels) // columns) or 1
    figure = Figure(figsize=(6 * columns, 4 * rows), layout="constrained")
    last = max((record["step"] for record in records), default=1)
    for number, (title, unit, drawn) in enumerate(panels, 1):
        axis = figure.add_subplot(rows, columns, number)
        for name in drawn:
            steps, values = zip(*((r["step"], r[name]) for r in records if name in r), strict=True)
            color, marker = _LINES.get(_subject(name), ("black", "x"))  # another version wrote the record
            style: dict[str, Any] = {"linestyle": "--", "linewidth": 1.0}  # validation
            if not name.startswith("valid/"):  # few hollow markers: training has many points
                style = {"markerfacecolor": "white", "markevery": max(len(steps) // 8, 1)}
            label = f"{_label(name)}: {values[-1]:.3g}"
            axis.plot(steps, values, label=label, color=color, marker=marker, **style)
        axis.margins(y=0.1)
        axis.set(xlabel="step", ylabel=unit, title=title, xlim=(0, last * 1.03), ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", title="last value", title_fontsize="small")
    return figure


def _subject(name: str) -> str:
    """What a metric is about, a key of `_LINES`: valid/nll/ar -> ar, loss/kl_ar_nar -> ar_nar, valid/bleu_nar -> nar."""
    return name.rsplit("/", 1)[1].removeprefix("kl_").removeprefix("bleu_")


def _place(name: str) -> tuple[int, bool]:
    """Order in a legend: by `_LINES`, other names last; training before validation."""
    return [*_LINES, _subject(name)].index(_subject(name)), name.startswith("valid/")


def _label(name: str) -> str:
    """The words of a legend: valid/nll/ar -> AR, validation; loss/kl_ar_nar -> AR and NAR."""
    subject = _subject(name)
    words = subject if subject in ("length", "accepted") else subject.upper().replace("_", " and ")
    return f"{words}, validation" if name.startswith("valid/") else words


def _truncate(path: Path, step: int) -> None:
    """Removes the records after `step`; a rename replaces the file."""
    records = [r for r in read_metrics(path) if r["step"] <= step]
    if path.exists():
        files.write_bytes(path, "".join(json.dumps(r) + "\n" for r in records).encode())


def _shown(name: str) -> bool:
    return name.startswith(
        ("loss/total", "nll/", "heads/", "valid/", "time/tokens", "time/flops", "learning_rate", "skipped")
    )
