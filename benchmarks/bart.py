"""A BART to both ways and back at real size: seconds and memory of each step, with random weights.

    python benchmarks/bart.py --pairs=my/train.tsv --folder=/tmp/bart [--size=bart_base] [--tokens=1024] [--json]

Writes a BART as transformers does, with a byte-level BPE trained on the pairs, and imports it. For each of two presets
of configs/bart_finetune.py, base and base_frozen, three training steps of about --tokens tokens are run, and the seconds
of the last one count. Then the run is exported as hf and as bart; the hf export is imported again and compared bit for
bit; the bart export goes through CTranslate2. Every command is a process of its own: the seconds are those of the
command, start included, and the memory is its peak. Operations of a step of 16,384 tokens come from `--dry_run`.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the commands need the device's memory

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from janus_jax import checkpoint, text
from janus_jax.command_line import ArgumentParser, load_config, report_mistakes
from janus_jax.config import TextConfig
from janus_jax.convert.hf_tokenizer import tokenizer_files
from janus_jax.metrics import read_metrics
from janus_jax.model.presets import PRESETS
from janus_jax.train.dry_run import dry_run

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("base", "base_frozen")
_SHAPE = ("d_model", "ffn_dim", "heads", "encoder_layers", "decoder_layers", "max_positions")


def make_bart(folder: Path, lines: Sequence[str], size: str) -> None:
    """Writes a random BART of a size of `model.presets` in the layout of transformers."""
    import transformers

    model = PRESETS[size]
    tokenizer = text.train(lines, TextConfig(model_type="byte_bpe", vocab_size=model.vocab_size or 6000))
    config = transformers.BartConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=model.d_model,
        max_position_embeddings=model.max_positions,
        **{f"{side}_layers": getattr(model, f"{side}_layers") for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": model.ffn_dim for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": model.heads for side in ("encoder", "decoder")},
    )
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    for name, content in tokenizer_files(tokenizer).items():
        (folder / name).write_text(content, encoding="utf-8")


def command(arguments: Sequence[str]) -> dict[str, float]:
    """Runs a command to its end; seconds, and peak memory in gigabytes.

    Raises:
      OSError: the command failed; the message has the end of its output.
    """
    start = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise OSError(f"{' '.join(arguments)} failed: {output[-1000:]}")
    return {"seconds": time.perf_counter() - start, "peak_gigabytes": usage.ru_maxrss * 1024 / 1e9}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    folder, module = Path(args.folder), (sys.executable, "-m")
    converter = Path(sys.executable).parent / "ct2-transformers-converter"
    if not converter.exists():
        raise OSError(f"{converter} is missing: pip install ctranslate2")
    folder.mkdir(parents=True)
    lines = [side for line in Path(args.pairs).read_text(encoding="utf-8").splitlines() for side in line.split("\t")]
    make_bart(folder / "bart", lines, args.size)
    convert = (*module, "janus_jax.convert")
    imported = folder / "imported"
    steps = {"import": command([*convert, "import", "--from=hf", f"--model={folder / 'bart'}", f"--output={imported}"])}
    data = [f"--config.init_from={imported}", f"--config.data.train={args.pairs}", "--config.data.valid="]
    data += [f"--config.data.prepared={folder / 'prepared'}"]
    for side, longest in (("source", 512), ("target", 128)):
        data += [f"--config.data.max_{side}_length={min(longest, PRESETS[args.size].max_positions)}"]
    size = [
        f"--config.data.tokens_per_batch={args.tokens}",
        "--config.data.batch_multiple=1",
        "--config.data.buckets=1",
    ]
    run = ["--config.train.steps=3", "--config.train.log_every=1", "--config.train.eval_every=3"]
    run += ["--config.train.checkpoint_every=3", "--config.optimizer.warmup_steps=1"]
    figures: dict[str, Any] = {"commands": steps, "training": {}}
    for kind in KINDS:
        config = f"--config=configs/bart_finetune.py:{kind}"
        if kind == KINDS[0]:
            steps["data"] = command([*module, "janus_jax.data", config, *data])
        workdir = folder / kind
        whole = command([*module, "janus_jax.train", config, *data, *size, *run, f"--workdir={workdir}"])
        # The preset's tokens in four parts, whose activations fit into this machine's memory.
        parts = ["--config.data.tokens_per_batch=4096", "--config.train.accumulation=4"]
        shape = [f"--config.model.{name}={getattr(PRESETS[args.size], name)}" for name in _SHAPE]
        settings = [*data, *parts, *shape]
        forecast = dry_run(load_config(str(ROOT / f"configs/bart_finetune.py:{kind}"), settings), lambda report: None)
        figures["training"][kind] = {
            "command": whole,
            "step_seconds": _step_seconds(workdir),
            "gflop_of_the_preset": forecast.flops / 1e9,
            "tokens_of_the_preset": 4 * 4096,
            "state_gigabytes": forecast.memory.state / 1e9,
        }
    for kind in KINDS:
        for form in ("hf", "bart"):
            target = [f"--checkpoint={folder / kind}", f"--format={form}", f"--output={folder / f'{kind}_{form}'}"]
            steps[f"export {kind} {form}"] = command([*convert, "export", *target])
        again = folder / f"{kind}_again"
        target = ["--from=hf", f"--model={folder / f'{kind}_hf'}", f"--output={again}"]
        steps[f"import {kind} hf"] = command([*convert, "import", *target])
        figures["training"][kind]["read_back_bitwise"] = same_parameters(folder / kind, again)
    figures["ar_half_kept_bitwise"] = kept(imported, folder / KINDS[1])
    target = ["--model", str(folder / f"{KINDS[1]}_bart"), "--output_dir", str(folder / "ct2")]
    steps["CTranslate2"] = command([str(converter), *target])
    loaded = checkpoint.load(imported)
    figures["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    figures["model"] = dataclasses.asdict(loaded.config.model)
    return figures


def _step_seconds(workdir: Path) -> float:
    """Of the last step, without its compilation."""
    return [
        record["time/seconds_per_step"]
        for record in read_metrics(workdir / "metrics.jsonl")
        if "time/seconds_per_step" in record
    ][-1]


def _named(path: Path) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.load(path).params)
    return {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}


def same_parameters(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same numbers."""
    left, right = _named(one), _named(other)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def kept(before: Path, after: Path) -> bool:
    """Whether the numbers of a checkpoint are in another one, bit for bit: of tables the rows that both have."""
    left, right = _named(before), _named(after)
    tokens = text.load(checkpoint.load(before).tokenizer).vocab_size

    def rows(name: str) -> int | None:
        if "embed_tokens" in name:  # the row after those of the tokenizer is CTC's blank
            return tokens
        return min(len(left[name]), len(right[name])) if "embed_" in name else None

    return left.keys() <= right.keys() and all(
        np.array_equal(left[name][: rows(name)], right[name][: rows(name)]) for name in left
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="source TAB target in each line")
    parser.add_argument("--folder", required=True, help="to make; it gets some gigabytes")
    parser.add_argument("--size", default="bart_base", choices=[name for name in PRESETS if name.startswith("bart")])
    parser.add_argument("--tokens", type=int, default=1024, help="of a training step")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)

    def body() -> None:
        figures = {"machine": common.machine() | {"cores": os.cpu_count()}, "size": args.size, "tokens": args.tokens}
        figures |= measure(args)
        for name, row in figures["commands"].items():
            print(f"{name:24s} {row['seconds']:7.1f} s  {row['peak_gigabytes']:.2f} GB")
        for kind, row in figures["training"].items():
            print(
                f"{kind:24s} {row['step_seconds']:7.1f} s a step of {args.tokens} tokens  {row['command']['peak_gigabytes']:.2f} GB; "
                f"{row['gflop_of_the_preset']:.0f} GFLOP a step of {row['tokens_of_the_preset']} tokens; read back bitwise: "
                f"{row['read_back_bitwise']}"
            )
        print(f"frozen half kept bitwise: {figures['ar_half_kept_bitwise']}")
        common.finish(figures, args.json)

    return report_mistakes(body)


if __name__ == "__main__":
    sys.exit(main())
