"""Time of decoding, mode by mode, beside the rate of a matrix product measured in the same run.

    python benchmarks/decode.py [--json] [--batches=1,32,256] [--modes="ar:beam=1;nar:passes=1"] [--runs=5]
    python benchmarks/decode.py --peer=transformers

The model has the shape of the released code's published figures: source 28, target 27 tokens, D 512, F 1024, H 4,
6+6 layers, V 10000 (37.8M parameters). Its weights are random. Every output has the full length, so that all modes do
equal work: AR forces eos at the end, NAR gets its lengths as input, and CTC always has two rows per source token.
Random weights accept no draft. `speculative` shows the worst case: the speed of greedy search when drafts fail, batch
after batch, while the policy drafts less and less. `oracle` shows the best case: drafts are computed and then replaced
by the tokens of AR. Times exclude compilation and the measurement of passes.

With --peer an encoder-decoder of the same size runs in that system (benchmarks/peers.py) and takes turns with ours.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common, peers
from configs import recipes
from janus_jax import parallel
from janus_jax.command_line import ArgumentParser
from janus_jax.config import DecodeConfig, default_config, resolve
from janus_jax.decode import MODES, DecodeRequest, DecodeResult, remask_counts
from janus_jax.decode.keywords import places, with_keywords
from janus_jax.decode.modes import nar
from janus_jax.decode.modes.autoregression import ar_constraints, ar_limits
from janus_jax.decode.modes.filling import fill_settings, rules_of, run_lengths
from janus_jax.decode.modes.rerank import run_rerank
from janus_jax.decode.modes.speculative import Speculation
from janus_jax.decode.search.candidates import hypotheses_of, ranking
from janus_jax.decode.search.draft_policy import PassCosts
from janus_jax.decode.search.verify import speculative_search
from janus_jax.evaluate import parse_setting
from janus_jax.model import Janus
from janus_jax.model.cost import mask_predict_flops
from janus_jax.types import Params, Specials

SOURCE, TARGET, VOCAB = peers.SOURCE, peers.TARGET, peers.VOCAB
SETTINGS = (
    "ar:beam=1 ar:beam=5 ar:sample=true nar:passes=1,length_beam=1 nar:passes=1,length_beam=3 "
    "nar:passes=4,length_beam=1 nar:passes=4,length_beam=3 nar:passes=10,length_beam=1 nar:passes=10,length_beam=3 "
    "nar:passes=4,length_beam=3,rerank=ar ctc:beam=1 ctc:beam=5 ctc:beam=5,rerank=ar speculative oracle"
).split()


class Decoder:
    """Decodes one batch of full-length sentences by one setting."""

    def __init__(self, net: Janus, params: Params, setting: str, batch: int):
        # eos is forced after 26 tokens, without bos.
        full = {"max_length_a": 0.0, "max_length_b": TARGET - 2, "min_length": TARGET - 2}
        self.setting, self.oracle = setting, setting == "oracle"
        keywords = parse_setting("speculative" if self.oracle else setting)
        # The AR limits apply to every mode that has these settings.
        limits = {name: value for name, value in full.items() if name in places(keywords["mode"])}
        self.decode: DecodeConfig = with_keywords(DecodeConfig(), limits | keywords)
        source = peers.sources(batch).astype(np.int32)
        self.request = DecodeRequest(net, params, source, self.decode, TARGET + 1)
        self.lengths = jnp.tile(TARGET - jnp.arange(self.decode.nar.length_beam), (batch, 1))
        if self.oracle:
            greedy = with_keywords(DecodeConfig(), full | {"mode": "ar", "beam": 1})
            self.ar_tokens = MODES["ar"].run(replace(self.request, decode=greedy)).hypotheses.tokens[:, 0]

    def __call__(self) -> jax.Array:
        """The tokens of the batch's hypotheses; also sets `passes`."""
        if self.oracle:
            result = self._oracle()
        elif self.decode.mode == "nar":
            result = self._nar()
        else:
            result = MODES[self.decode.mode].run(self.request)
            # A Generator passes the policy on from batch to batch in the same way.
            self.request = replace(self.request, policy=jax.device_get(result.policy))
        self.passes = result.statistics.get("passes")
        return result.hypotheses.tokens

    def _nar(self) -> DecodeResult:
        """Decodes by mode nar with fixed lengths."""
        r, rules = self.request, rules_of(self.decode)
        settings = fill_settings(self.decode, self.decode.nar.passes, rules)
        count = self.decode.nar.length_beam
        encoded, _ = run_lengths(r.params, r.source, net=r.net, rules=rules, limit=TARGET, count=count)
        candidates = nar.run_nar(
            r.params, encoded, self.lengths, None, net=r.net, settings=settings, limit=TARGET, trace=False
        )
        if self.decode.nar.rerank == "ar":
            candidates = run_rerank(r.params, encoded, candidates, net=r.net, lenpen=self.decode.ar.lenpen)
        hypotheses = hypotheses_of(candidates, ranking(candidates))
        return DecodeResult(hypotheses, {"passes": candidates.passes.max(axis=1)})

    def _oracle(self) -> DecodeResult:
        """Decodes by speculative search with drafts that AR accepts in full."""
        r, rules = self.request, rules_of(self.decode)
        encoded, _ = run_lengths(r.params, r.source, net=r.net, rules=rules, limit=TARGET, count=1)
        limit, max_lengths = ar_limits(r, self.decode.ar)
        filling = fill_settings(self.decode, self.decode.speculative.draft_passes, replace(rules, end_at_eos=False))
        binding = Speculation(r.net, filling, TARGET + 1, limit)
        constraints = ar_constraints(r.net, self.decode.ar, released=False)
        arrays = (r.params, encoded, self.lengths[:, :1] + 1)
        hypotheses, counts, _ = _speculate(
            arrays, max_lengths, self.ar_tokens, binding=binding, constraints=constraints
        )
        return DecodeResult(hypotheses, {"passes": counts.drafts + counts.rounds + counts.steps})


@functools.partial(jax.jit, static_argnames=("binding", "constraints"))
def _speculate(arrays, max_lengths, ar_tokens, *, binding, constraints):
    """Speculative search that computes its drafts and then replaces them by the tokens of AR."""
    bound, net, slots = binding(arrays), binding.net, binding.slots
    made = bound.drafter
    gold = jnp.pad(ar_tokens, ((0, 0), (1, slots)))[:, None, :slots]
    return speculative_search(
        # Tokens are never negative. The comparison only keeps the compiler from removing the draft.
        replace(
            made, draft_fn=lambda tokens, at: jnp.where(made.draft_fn(tokens, at) < 0, tokens, gold), realign=False
        ),
        bound.verify_fn,
        bound.project_fn,
        bound.rewind_fn,
        net.reorder_cache,
        bound.empty_cache(),
        max_lengths=max_lengths,
        limit=binding.limit,
        specials=net.specials,
        constraints=constraints,
        costs=PassCosts.of_free_drafts((slots - 1,)),
        cached=bound.cached,
    )


def share_of_matmul(decoder: Decoder, batch: int, seconds: float, rate: float) -> float | None:
    """Operations per second of mask-predict as a share of a matrix product's rate; None for other modes."""
    d = decoder.decode.nar
    if decoder.decode.mode != "nar" or d.rerank == "ar":
        return None
    slots = [TARGET - 2, *remask_counts(TARGET, d.passes, d.mask_schedule)[:-1]]
    model = decoder.request.net.config
    return mask_predict_flops(model, batch, SOURCE, TARGET, d.length_beam, slots) / seconds / rate


def run_in_turns(calls: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call. The calls take turns, so that a slow moment of the machine affects all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            times[name].append(call())
    return times


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """A function that measures the seconds of a call; the first call, which compiles, runs here."""
    jax.block_until_ready(call())
    return lambda: common.seconds(call, 1)[0]


def make_model(ar_stream: str, dtype: str, ctc: bool = False) -> tuple[Janus, Params]:
    """A model of the published shape with random weights; with `ctc`, CTC rows as in configs/recipes.py."""
    config = recipes.ctc(default_config()) if ctc else default_config()
    config.model.update(vocab_size=VOCAB, ar_stream=ar_stream, dtype=dtype)
    net = Janus(resolve(config).model, Specials())
    return net, jax.jit(net.init)(jax.random.key(0))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of all settings and batch sizes, as the last line prints them."""
    net, params = make_model(args.ar_stream, args.dtype)
    with_ctc = make_model(args.ar_stream, args.dtype, ctc=True)
    rows = []
    for batch in map(int, args.batches.split(",")):
        decoders = {
            setting: Decoder(*(with_ctc if setting.startswith("ctc") else (net, params)), setting, batch)
            for setting in args.modes or SETTINGS
        }
        calls = {setting: timed(decoder) for setting, decoder in decoders.items()}
        calls["matmul"] = lambda: 1 / common.matmul_flops_per_second(net.dtype)
        times = run_in_turns(calls, args.runs)
        rate = 1 / median(times.pop("matmul"))
        for setting, seconds in times.items():
            decoder, median_seconds = decoders[setting], median(seconds)
            row = {"setting": setting, "batch": batch, "sentences_per_second": batch / median_seconds}
            row["milliseconds_per_sentence"] = 1000 * median_seconds / batch
            row["passes"] = float(np.mean(decoder.passes))
            row["share_of_matmul"] = share_of_matmul(decoder, batch, median_seconds, rate)
            row["matmul_gflops_per_second"] = rate / 1e9
            for name in ("ar:beam=1", "ar:beam=5"):
                if name in times:
                    row[f"times {name}"] = median(times[name]) / median_seconds
            row["seconds"] = seconds
            rows.append(row)
            share = "" if row["share_of_matmul"] is None else f"{row['share_of_matmul']:6.0%} of matmul"
            print(
                f"{setting:36s} batch {batch:4d} {row['sentences_per_second']:9.2f} sentences/s "
                f"{row['milliseconds_per_sentence']:9.2f} ms {row['passes']:6.1f} passes {share}",
                flush=True,
            )
    return {
        "machine": common.machine(),
        "model": {"ar_stream": args.ar_stream, "dtype": str(net.dtype)},
        "shape": {"source": SOURCE, "target": TARGET, "vocab": VOCAB},
        "rows": rows,
    }


def measure_beside(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of ours and of a peer, measured in turns; every row has its speed as a multiple of the peer's."""
    if jax.default_backend() != "cpu":
        raise SystemExit(f"error: --peer={args.peer}: it runs on the CPU, but JAX here does not; set JAX_PLATFORMS=cpu")
    peer = peers.Peer(args.peer)
    models = {stream: make_model(stream, args.dtype) for stream in ("content", "query")}
    rows = []
    for batch in map(int, args.batches.split(",")):
        calls = {}
        for beams in (1, 5):
            calls[f"{args.peer} beam={beams}"] = functools.partial(peer.seconds, beams, batch)
            peer.seconds(beams, batch)
            for stream, (net, params) in models.items():
                calls[f"{stream} ar:beam={beams}"] = timed(Decoder(net, params, f"ar:beam={beams}", batch))
        calls["nar:passes=1"] = timed(Decoder(*models["query"], "nar:passes=1,length_beam=1", batch))
        for name, seconds in run_in_turns(calls, args.runs).items():
            row = {"system": name, "batch": batch, "sentences_per_second": batch / median(seconds), "seconds": seconds}
            rows.append(row)
            print(f"{name:28s} batch {batch:4d} {row['sentences_per_second']:9.2f} sentences/s", flush=True)
    peer.close()
    for row in rows:
        beams = 5 if row["system"].endswith("beam=5") else 1
        peer_row = next(r for r in rows if (r["system"], r["batch"]) == (f"{args.peer} beam={beams}", row["batch"]))
        row[f"times {peer_row['system']}"] = row["sentences_per_second"] / peer_row["sentences_per_second"]
    return {
        "machine": common.machine(),
        "peer": peer.version,
        "threads": peers.THREADS,
        "shape": {"source": SOURCE, "target": TARGET, "vocab": VOCAB},
        "matmul_gflops_per_second": common.matmul_flops_per_second() / 1e9,
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", help="default: 1,32,256; with --peer 1,32")
    parser.add_argument("--modes", type=lambda text: text.split(";"), help="settings, separated by ;")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ar_stream", choices=("query", "content"), default="query")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--peer", choices=peers.NAMES, help="compare with this system")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args(argv)
    args.batches = args.batches or ("1,32" if args.peer else "1,32,256")
    parallel.start()
    common.finish((measure_beside if args.peer else measure)(args), args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
