"""Time of decoding, mode by mode, beside the rate of a matrix product measured in the same run.

    python benchmarks/decode.py [--json] [--batches=1,32] [--modes="ar:beam=1;nar:passes=1"] [--runs=3]

The shape is that of the published figures of the released code: source 28, target 27 tokens, D 512, F 1024, H 4, 6+6 layers,
V 10000 (37.8M parameters), random weights. Every output has the full length (AR: eos is forced there; NAR: the lengths are given),
so that modes do equal work. Random weights accept no draft: the speculative row is the worst case of speculation.
Compilation is not counted.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from janus_jax import parallel
from janus_jax.config import DecodeConfig, resolve
from janus_jax.decode import MODES, nar
from janus_jax.decode.candidates import ranking
from janus_jax.decode.request import Request
from janus_jax.evaluate import parse_setting
from janus_jax.model import Janus
from janus_jax.types import Params, Specials

SOURCE, TARGET, VOCAB = 28, 27, 10_000
SETTINGS = (
    "ar:beam=1 ar:beam=5 ar:sample=true nar:passes=1,length_beam=1 nar:passes=1,length_beam=3 nar:passes=4,length_beam=1 "
    "nar:passes=4,length_beam=3 nar:passes=10,length_beam=1 nar:passes=10,length_beam=3 nar:passes=4,length_beam=3,rerank=ar "
    "speculative"
).split()


def decoder(net: Janus, params: Params, setting: str, batch: int) -> Callable[[], Any]:
    """A call that decodes one batch of full-length sentences."""
    rng = np.random.default_rng(0)
    source = rng.integers(5, VOCAB, (batch, SOURCE), dtype=np.int32)
    source[:, 0], source[:, -1] = Specials.bos, Specials.eos
    # eos comes where it is forced: after 26 tokens, bos not counted.
    full = {"max_length_a": 0.0, "max_length_b": TARGET - 2, "min_length": TARGET - 2}
    decode = resolve({"decode": full | parse_setting(setting)}).decode
    request = Request(net, params, source, decode, TARGET + 1)
    if decode.mode != "nar":
        return lambda: MODES[decode.mode](request).hypotheses.tokens
    lengths = jnp.tile(TARGET - jnp.arange(decode.length_beam), (batch, 1))
    return lambda: _nar(request, decode, lengths)


def _nar(request: Request, decode: DecodeConfig, lengths: jax.Array) -> jax.Array:
    """`decode_nar` for lengths that are given."""
    net, params, static = request.net, request.params, request.static
    encoded, _ = nar.run_lengths(params, request.source, net=net, decode=static, limit=TARGET, count=decode.length_beam)
    found = nar.run_nar(params, encoded, lengths, None, net=net, decode=static, limit=TARGET, trace=False)
    if decode.rerank == "ar":
        found = nar.run_rerank(params, encoded, found, net=net, decode=static)
    return ranking(found)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the last line holds."""
    config = resolve({"model": {"vocab_size": VOCAB, "ar_stream": args.ar_stream, "dtype": args.dtype}})
    net = Janus(config.model, Specials())
    params = jax.jit(net.init)(jax.random.key(0))
    rows = []
    for batch in map(int, args.batches.split(",")):
        calls = {setting: decoder(net, params, setting, batch) for setting in args.modes or SETTINGS}
        for call in calls.values():
            jax.block_until_ready(call())
        # Modes take turns, so that a slow moment of the machine hits all of them.
        times: dict[str, list[float]] = {setting: [] for setting in calls}
        for _ in range(args.runs):
            for setting, call in calls.items():
                times[setting] += common.seconds(call, 1)
        for setting, seconds in times.items():
            row = {"setting": setting, "batch": batch, "sentences_per_second": batch / median(seconds)}
            row["milliseconds_per_sentence"] = 1000 * median(seconds) / batch
            row["seconds"] = seconds
            rows.append(row)
            print(f"{setting:34s} batch {batch:4d} {row['sentences_per_second']:9.2f} sentences/s", flush=True)
    for row in rows:
        for name in ("ar:beam=1", "ar:beam=5"):
            for other in rows:
                if (other["setting"], other["batch"]) == (name, row["batch"]):
                    row[f"times {name}"] = row["sentences_per_second"] / other["sentences_per_second"]
    return {
        "machine": common.machine(),
        "model": {"ar_stream": args.ar_stream, "dtype": str(net.dtype)},
        "shape": {"source": SOURCE, "target": TARGET, "vocab": VOCAB},
        "matmul_gflops_per_second": common.matmul_flops_per_second(net.dtype) / 1e9,
        "rows": rows,
    }


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--modes", type=lambda text: text.split(";"), help="settings, with ; between them")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ar_stream", choices=("query", "content"), default="query")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object at the end")
    args = parser.parse_args()
    parallel.start()
    common.finish(measure(args), args.json)


if __name__ == "__main__":
    main()
