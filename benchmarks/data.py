"""Sentence pairs per second of the data pipeline, masks included: `python -m benchmarks.data [--json]`.

The program joins pairs of the built-in corpus to sentences of about 31 tokens (bos and eos counted; training pairs of
IWSLT14 and WMT have about 27), prepares them in a temporary directory and reads training batches as the training loop does.

With --json the last line is one JSON object.
"""

import os
import pathlib
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from janus_jax import config as config_lib
from janus_jax import data
from janus_jax.command_line import ArgumentParser
from janus_jax.data import demo

_PHRASES = (2, 3)  # phrases in a sentence
_REPEATS = 5


def prepare(directory: pathlib.Path, pairs: int, workers: int, tokens_per_batch: int) -> tuple[data.Prepared, float]:
    """Writes and prepares a corpus; returns it and the seconds of preparation."""
    phrases, _, _ = demo.generate("de", "en", (pairs, 0, 0), 0)
    rng = random.Random(0)
    with open(directory / "train.tsv", "w", encoding="utf-8") as file:
        for _ in range(pairs):
            chosen = rng.sample(phrases, rng.choice(_PHRASES))
            file.write("\t".join("; ".join(side) for side in zip(*chosen, strict=True)) + "\n")
    settings = config_lib.default_config()
    settings.text.update({"model_type": "bpe", "vocab_size": 800, "character_coverage": 1.0})
    settings.data.update(
        {
            "source": "tsv", "train": str(directory / "train.tsv"), "valid": "", "test": "",
            "prepared": str(directory / "prepared"), "workers": workers, "tokens_per_batch": tokens_per_batch,
        }
    )  # fmt: skip
    config = config_lib.resolve(settings)
    start = time.perf_counter()
    data.prepare(config, log=lambda _: None)
    return data.Prepared.open(config.data.prepared, config), time.perf_counter() - start


def rate(prepared: data.Prepared, first_step: int, seconds: float) -> tuple[float, int]:
    """Pairs per second over about `seconds` of training batches from step `first_step`, and the next step."""
    batches = data.train_batches(prepared, prepared.config, first_step, first_step + 10**9)
    next(batches)  # threads start
    start, pairs, step = time.perf_counter(), 0, first_step + 1
    for batch in batches:
        pairs += int((batch.example_id >= 0).sum())
        step += 1
        if time.perf_counter() - start > seconds:
            break
    return pairs / (time.perf_counter() - start), step


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20_000, help="size of the corpus")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each of the five measurements")
    parser.add_argument("--workers", type=int, default=1, help="threads that prepare batches")
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        prepared, prepare_seconds = prepare(pathlib.Path(folder), args.pairs, args.workers, args.tokens_per_batch)
        rates, step = [], 0
        for _ in range(_REPEATS):
            pairs_per_second, step = rate(prepared, step, args.seconds)
            rates.append(pairs_per_second)
        split = prepared.report["splits"]["train"]
        result = {
            "pairs_per_second": round(statistics.median(rates)),
            "slowest": round(min(rates)),
            "fastest": round(max(rates)),
            "mean_target_length": round(split["tokens"]["target"] / split["kept"], 1),
            "prepare_pairs_per_second": round(split["kept"] / prepare_seconds),
            "workers": args.workers,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "config_hash": config_lib.config_hash(prepared.config),
            "python": platform.python_version(),
        }
    print(
        f"{result['pairs_per_second']} pairs/s (median of {_REPEATS}; {result['slowest']}-{result['fastest']}) at "
        f"{result['mean_target_length']} target tokens, {result['workers']} worker threads, {result['cores']} cores; "
        f"prepared at {result['prepare_pairs_per_second']} pairs/s"
    )
    common.finish(result, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
