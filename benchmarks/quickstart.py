"""The last step of ./launch/quickstart.sh: decodes the test split by several settings, prints a table and translations.

    python -m benchmarks.quickstart --workdir=runs/demo_deen

Figures and translations are written to quickstart.json in the workdir. The same checkpoint is not decoded twice.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.common import finish, machine
from janus_jax import checkpoint, parallel
from janus_jax import config as config_lib
from janus_jax.command_line import ArgumentParser
from janus_jax.data import DataError, Prepared
from janus_jax.decode import Generator
from janus_jax.evaluate import evaluate_settings, format_table, standard_settings

SAMPLES = 10
# Outputs by these settings are shown below source and reference, as far as the model was decoded by them.
SAMPLE_SETTINGS = ("ar:beam=5", "nar:passes=10", "ctc:beam=1")


def measure(workdir: Path) -> dict[str, Any]:
    """Decodes the test split with the newest checkpoint of `workdir`, or reads its figures from an earlier run.

    Returns:
      A dict that JSON can hold: `checkpoint`, `config_hash`, `step`, `machine`, `rows` of `evaluate_settings`,
      `sources`, `references`.

    Raises:
      CheckpointError, DataError: there is no checkpoint, or its data are missing.
    """
    step_dir = checkpoint.find(workdir)
    loaded = checkpoint.load(step_dir)
    identity = {"checkpoint": str(step_dir), "step": loaded.step, "config_hash": config_lib.config_hash(loaded.config)}
    path = workdir / "quickstart.json"
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if {name: earlier.get(name) for name in identity} == identity:
            return earlier
    pairs = Prepared.open(loaded.config.data.prepared, loaded.config).text("test")
    sources, references = ([pair[i] for pair in pairs] for i in (0, 1))
    generator = Generator.from_checkpoint(step_dir)
    settings = standard_settings(generator.trained)
    with tqdm(total=2 * len(settings) * len(pairs), unit="line", disable=not sys.stderr.isatty()) as bar:
        rows = evaluate_settings(generator, sources, references, settings, progress=bar.update)
    figures = identity | {
        "machine": machine() | {"cores": os.cpu_count()},
        "rows": rows,
        "sources": sources,
        "references": references,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, ensure_ascii=False, indent=1), encoding="utf-8")
    partial.replace(path)
    return figures


def show(figures: dict[str, Any], workdir: Path) -> str:
    """The figures of `measure` as text: sample translations, the table, and the paths of the results."""
    outputs = {row["setting"]: row["hypotheses"] for row in figures["rows"]}
    count = len(figures["sources"])
    where = "{devices} x {device}, {cores} cores, JAX {jax}, Python {python}".format(**figures["machine"])
    lines = []
    for i in range(0, count, max(1, count // SAMPLES))[:SAMPLES]:
        lines += [f"source         {figures['sources'][i]}", f"reference      {figures['references'][i]}"]
        lines += [f"{name:<14} {outputs[name][i]}" for name in SAMPLE_SETTINGS if name in outputs] + [""]
    return "\n".join(
        [
            *lines,
            format_table(figures["rows"]),
            f"{count} test sentences, step {figures['step']}; {where}; sentences/s without compilation",
            "",
            f"checkpoint  {figures['checkpoint']}",
            f"plot        {workdir / 'curves.png'}",
            f"log         {workdir / 'metrics.jsonl'} (and TensorBoard: {workdir / 'tensorboard'})",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit status (2: the checkpoint or its data cannot be used)."""
    parser = ArgumentParser(prog="python -m benchmarks.quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, type=Path, help="directory of the run")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    parallel.start()
    try:
        figures = measure(args.workdir)
        print(show(figures, args.workdir))
        finish(figures, args.json)
    except (checkpoint.CheckpointError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
