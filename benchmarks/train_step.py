"""Time of a training step for each objective, with the rate of a matrix product measured in the same run.

    python benchmarks/train_step.py [--json] [--objectives=ar,cmlm,janus,ctc,janus_ctc] [--runs=7]
    python benchmarks/train_step.py --preset=bart_base [--sentences=8 --length=512] [--remat=dots] [--json]

The model has the shape of the released code's published figures: 32 sentences, source 28, target 27 tokens, D 512,
F 1024, H 4, 6+6 layers, V 10000 (37.8M parameters), dropout 0.3, Adam. With a preset the program measures its denoising
pretraining step: 2 blocks of 256 tokens, dropout 0.1 (attention too). Masks come from the samplers (seed 0) and have
the trainer's padding. FLOPs are those of the algorithm: matrix products of real and padded rows, three times for
forward and backward (`model.cost`). Operations that the compiler recomputes or adds are not counted.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from configs import bart_janus
from janus_jax import parallel
from janus_jax.command_line import ArgumentParser
from janus_jax.config import Config, resolve
from janus_jax.data import corruption
from janus_jax.data.denoising import max_masked, noise
from janus_jax.model import Janus
from janus_jax.model.cost import parameter_count, step_flops
from janus_jax.model.presets import PRESETS
from janus_jax.objective.terms import OBJECTIVES, read_families
from janus_jax.train.step import compiler_options, init_state, make_train_step
from janus_jax.types import Batch, Specials

SENTENCES, SOURCE, TARGET, VOCAB = 32, 28, 27, 10_000


def make_config(objective: str, args: argparse.Namespace) -> Config:
    """The config of the published shape with one objective, or of a preset's pretraining."""
    if args.preset:
        raw = bart_janus.pretraining(args.preset).to_dict()
        raw["model"] |= {"vocab_size": PRESETS[args.preset].vocab_size or VOCAB}
        raw["data"] |= {"max_source_length": args.length, "max_target_length": args.length}
    else:
        raw = {"model": {"vocab_size": VOCAB, "dropout": 0.3}, "objective": {}}
    changes = {name: getattr(args, name) for name in ("ar_stream", "dtype", "remat", "attention")}
    raw["model"] |= {name: value for name, value in changes.items() if value is not None}
    if args.dropout is not None:
        raw["model"] |= {"dropout": args.dropout, "attention_dropout": args.dropout if args.preset else 0.0}
    for family in read_families(OBJECTIVES.get(objective, ())) & {"ctc", "dag"}:
        raw["model"][f"{family}_ratio"] = 2.0
    raw["objective"] |= {"name": objective, "projection_rows": args.projection_rows}
    return resolve(raw | {"optimizer": {"name": "adam", "weight_decay": 0.0}})


def make_batch(config: Config, sentences: int, source: int, target: int) -> Batch:
    """One micro-batch [A=1, B, ...] of full-length sentences with the masks of seed 0."""
    rng = np.random.default_rng(0)
    vocab = config.model.vocab_size
    sides = [rng.integers(5, vocab, (sentences, length), dtype=np.int32) for length in (source, target)]
    for side in sides:
        side[:, 0], side[:, -1] = Specials.bos, Specials.eos
    ids = np.arange(sentences)
    if config.data.source == "text":
        # Four tokens of three words, sentences of 20 tokens.
        starts, marks = np.arange(vocab) % 4 != 3, np.arange(1, target - 1, 20)
        rows = corruption.row_generators(0, 0, ids)
        noised = [
            noise(g, block, starts, marks, config.data, Specials()) for g, block in zip(rows, sides[1], strict=True)
        ]
        sides[0] = np.full((sentences, target), Specials.pad, np.int32)
        masked = np.zeros((sentences, max_masked(target, config.data.noise_ratio)), np.int32)
        counts = np.array([len(block.masked) for block in noised], np.int32)
        for row, block in enumerate(noised):
            sides[0][row, : len(block.source)], masked[row, : len(block.masked)] = block.source, block.masked
    else:
        lengths, sampler = np.full(sentences, target), corruption.make_sampler(config.data)
        uniforms = corruption.row_uniforms(0, 0, ids, lengths, sampler.uniforms)
        masked, counts = corruption.mask_positions(sampler.masks(uniforms, lengths), sampler.max_masked(target))
    batch = Batch(*sides, masked.astype(np.int32), counts.astype(np.int32), ids.astype(np.int32))
    return jax.tree.map(lambda x: jax.device_put(x[None]), batch)


def measure(objective: str, args: argparse.Namespace) -> dict[str, float | str]:
    """Figures of one objective."""
    config = make_config(objective, args)
    net = Janus(config.model, Specials())
    lengths = (args.length, args.length) if args.preset else (SOURCE, TARGET)
    batch = make_batch(config, args.sentences, *lengths)
    peak_before = common.device_peak_gigabytes()
    state = jax.jit(lambda: init_state(net, config))()
    start = time.perf_counter()
    step = jax.jit(make_train_step(net, config), donate_argnums=0).lower(state, batch)
    step = step.compile(compiler_options=compiler_options(config))
    compile_seconds = time.perf_counter() - start

    def run() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss/total"]

    common.seconds(run, 2)
    common.reset_peak_memory()
    times = common.seconds(run, args.runs)
    seconds = statistics.median(times)
    peak = common.device_peak_gigabytes()
    if peak == peak_before:
        peak = None  # an objective before needed more
    flops = step_flops(config, args.sentences, *lengths, batch.masked.shape[-1])
    tokens = args.sentences * lengths[1]
    return {
        "objective": objective,
        "parameters": parameter_count(state.params),
        "masked_real": float(np.mean(batch.masked_count)),
        "masked_padded": batch.masked.shape[-1],
        "seconds": seconds,
        "seconds_min": min(times),
        "target_tokens_per_second": tokens / seconds,
        "gflop": flops / 1e9,
        "gflop_per_second": flops / seconds / 1e9,
        "compile_seconds": compile_seconds,
        "temporary_gigabytes": step.memory_analysis().temp_size_in_bytes / 1e9,
        "peak_gigabytes": common.peak_gigabytes(),
        "device_peak_gigabytes": peak,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--objectives", help="default: all; with a preset janus")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="measure the pretraining of this architecture instead"
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--sentences", type=int, help="default: 32; with a preset 2 blocks")
    parser.add_argument("--length", type=int, default=256, help="with a preset: tokens in a block")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--ar_stream", choices=["query", "content"])
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--remat", choices=["none", "dots", "full"])
    parser.add_argument("--attention", choices=["plain", "fused"])
    parser.add_argument("--projection_rows", type=int, default=0)
    args = parser.parse_args(argv)
    args.sentences = args.sentences or (2 if args.preset else SENTENCES)
    objectives = args.objectives or ("janus" if args.preset else ",".join(OBJECTIVES))
    parallel.start()
    rate = common.matmul_flops_per_second(Janus(make_config("janus", args).model, Specials()).dtype)
    rows = []
    for objective in objectives.split(","):
        row = measure(objective, args)
        row["share_of_matmul"] = row["gflop_per_second"] * 1e9 / rate
        rows.append(row)
        print(
            f"{objective:9s} {row['seconds']:.3f} s  {row['target_tokens_per_second']:.0f} target tokens/s  "
            f"{row['gflop']:.0f} GFLOP  {row['gflop_per_second']:.0f} GFLOP/s = {row['share_of_matmul']:.0%} of a "
            f"matrix product  (M {row['masked_real']:.1f} real, {row['masked_padded']} padded; compiled in "
            f"{row['compile_seconds']:.0f} s; {row['temporary_gigabytes']:.2f} GB of temporary memory; the process "
            f"holds at most {row['peak_gigabytes']:.2f} GB"
            + (f", the device {row['device_peak_gigabytes']:.2f} GB)" if row["device_peak_gigabytes"] else ")")
        )
    settings = dataclasses.asdict(make_config("janus", args).model)
    figures = {"machine": common.machine(), "matmul_gflop_per_second": rate / 1e9, "model": settings, "rows": rows}
    print(f"matrix product: {rate / 1e9:.0f} GFLOP/s")
    common.finish(figures, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
