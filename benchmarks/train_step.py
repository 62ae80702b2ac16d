"""Time of a training step, objective by objective, beside the rate of a matrix product measured in the same run.

    python benchmarks/train_step.py [--json] [--objectives=ar,cmlm,janus] [--runs=7]

The shape is that of the published figures of the released code: 32 sentences, source 28, target 27 tokens, D 512, F 1024,
H 4, 6+6 layers, V 10000 (37.8M parameters), dropout 0.3, Adam. Masks come from the span sampler (seed 0) and the
trainer's own padding. FLOPs are those of the algorithm: matrix products of real and padded rows, three times for
forward and backward (`model.cost`); what the compiler recomputes or adds is not counted.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from janus_jax import parallel
from janus_jax.config import Config, resolve
from janus_jax.data import corruption
from janus_jax.model import Janus
from janus_jax.model.cost import parameter_count, step_flops
from janus_jax.train.step import init_state, make_train_step
from janus_jax.types import Batch, Specials

SENTENCES, SOURCE, TARGET, VOCAB = 32, 28, 27, 10_000


def make_config(objective: str, args: argparse.Namespace) -> Config:
    """The published shape under one objective."""
    return resolve(
        {
            "model": {"vocab_size": VOCAB, "dropout": args.dropout, "ar_stream": args.ar_stream, "dtype": args.dtype},
            "objective": {"name": objective, "projection_chunk": args.projection_chunk},
            "optimizer": {"name": "adam", "weight_decay": 0.0},
        }
    )


def make_batch(config: Config, sentences: int = SENTENCES) -> Batch:
    """One micro-batch [A=1, B, ...] of full-length sentences with span masks of seed 0."""
    rng = np.random.default_rng(0)
    source = rng.integers(5, VOCAB, (sentences, SOURCE), dtype=np.int32)
    target = rng.integers(5, VOCAB, (sentences, TARGET), dtype=np.int32)
    for side in (source, target):
        side[:, 0], side[:, -1] = Specials.bos, Specials.eos
    ids, lengths = np.arange(sentences), np.full(sentences, TARGET)
    sampler = corruption.sampler_of(config.data)
    uniforms = corruption.row_uniforms(0, 0, ids, lengths, sampler.numbers)
    masked, counts = corruption.mask_positions(sampler.masks(uniforms, lengths), sampler.most(TARGET))
    batch = Batch(source, target, masked.astype(np.int32), counts.astype(np.int32), ids.astype(np.int32))
    return jax.tree.map(lambda x: jax.device_put(x[None]), batch)


def measure(objective: str, args: argparse.Namespace) -> dict[str, float | str]:
    """Figures of one objective."""
    config = make_config(objective, args)
    net = Janus(config.model, Specials())
    batch = make_batch(config, args.sentences)
    state = jax.jit(lambda: init_state(net, config))()
    start = time.perf_counter()
    step = jax.jit(make_train_step(net, config), donate_argnums=0).lower(state, batch).compile()
    compiled_in = time.perf_counter() - start

    def run() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss/total"]

    common.seconds(run, 2)
    times = common.seconds(run, args.runs)
    taken = statistics.median(times)
    flops = step_flops(config, args.sentences, SOURCE, TARGET, batch.masked.shape[-1])
    tokens = args.sentences * TARGET
    return {
        "objective": objective,
        "parameters": parameter_count(state.params),
        "masked_real": float(np.mean(batch.masked_count)),
        "masked_padded": batch.masked.shape[-1],
        "seconds": taken,
        "seconds_min": min(times),
        "target_tokens_per_second": tokens / taken,
        "gflop": flops / 1e9,
        "gflop_per_second": flops / taken / 1e9,
        "compile_seconds": compiled_in,
        "temporary_gigabytes": step.memory_analysis().temp_size_in_bytes / 1e9,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--objectives", default="ar,cmlm,janus")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--ar_stream", default="query", choices=["query", "content"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--projection_chunk", type=int, default=0)
    args = parser.parse_args(argv)
    parallel.start()
    rate = common.matmul_flops_per_second()
    rows = []
    for objective in args.objectives.split(","):
        row = measure(objective, args)
        row["share_of_matmul"] = row["gflop_per_second"] * 1e9 / rate
        rows.append(row)
        print(
            f"{objective:6s} {row['seconds']:.3f} s  {row['target_tokens_per_second']:.0f} target tokens/s  "
            f"{row['gflop']:.0f} GFLOP  {row['gflop_per_second']:.0f} GFLOP/s = {row['share_of_matmul']:.0%} of a matrix "
            f"product  (M {row['masked_real']:.1f} real, {row['masked_padded']} padded; compiled in "
            f"{row['compile_seconds']:.0f} s; {row['temporary_gigabytes']:.2f} GB)"
        )
    settings = dataclasses.asdict(make_config("janus", args).model)
    figures = {"machine": common.machine(), "matmul_gflop_per_second": rate / 1e9, "model": settings, "rows": rows}
    print(f"matrix product: {rate / 1e9:.0f} GFLOP/s")
    common.finish(figures, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
