"""Compares the model, the objectives and the searches with arrays of the released code.

    python tests/golden_check.py FILE.npz ...

prints the largest error of each array beside its tolerance, and exits with 1 if an error exceeds it. Arrays that show
a known fault of the released code (its cache, its early stop, its logging) are not compared.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from janus_jax.config import ArDecode, DecodeConfig, LossWeights, NarDecode, ObjectiveConfig
from janus_jax.convert.fairseq import model_config_from_released, params_from_released, params_to_released
from janus_jax.decode import MODES, DecodeRequest, remask_counts
from janus_jax.model import Janus
from janus_jax.model.families import row_layout
from janus_jax.model.families.aux import bridge_mask
from janus_jax.model.layout import bidirectional_mask
from janus_jax.objective.joint import batch_divisors, loss
from janus_jax.types import Batch, Specials

BOS, PAD, EOS, UNK = range(4)
HEADS = 4
ACTIVATION = 2e-5
LOSS, KL = 1e-5, 5e-5
EXACT = 0.0


@dataclass(frozen=True)
class Line:
    """One comparison: the largest error, and the largest allowed error."""

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


class Golden:
    """The arrays of a golden file, and the model with its parameters."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        released = {name[len("param/") :]: a for name, a in arrays.items() if name.startswith("param/")}
        self.config = model_config_from_released(released, HEADS)
        self.pretraining = self.config.ar_start == "eos"
        self.net = Janus(self.config, Specials(BOS, PAD, EOS, UNK, mask=UNK))
        self.params = params_from_released(released, self.config)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @cached_property
    def batch(self) -> Batch:
        real = self["in/nar_query_w"] != PAD
        rows = len(real)
        return Batch(
            source=jnp.asarray(self["in/src_tokens"]),
            target=jnp.asarray(self["in/target"]),
            masked=jnp.asarray(np.where(real, self["in/nar_query_p"], 0)),
            masked_count=jnp.asarray(real.sum(1)),
            example_id=jnp.arange(rows),
        )

    @cached_property
    def encoded(self):
        return jax.jit(self.net.encode)(self.params, self.batch.source)

    @property
    def objective(self) -> ObjectiveConfig:
        if self.pretraining:
            weights = LossWeights(ar=0.5, nar=0.5, aux=0.5, length=0.0, kl_ar_nar=1e-30, kl_nar_aux=0.5, kl_ar_aux=0.5)
            return ObjectiveConfig(label_smoothing=0.0, weights=weights, normalize_by="target")
        return ObjectiveConfig()

    def content_rows(self) -> Iterator[tuple[int, int, str, int]]:
        """(sentence, row, kind, position or rank) of the released content rows: visible tokens, masks, gold tokens."""
        counts = np.asarray(self.batch.masked_count)
        positions, tokens = self["in/nar_content_p"], self["in/nar_content_w"]
        real = (np.asarray(self.batch.target) != PAD).sum(1)
        for b, row in np.ndindex(tokens.shape):
            visible = real[b] - counts[b]
            if row < visible:
                yield b, row, "visible", positions[b, row]
            elif row < real[b]:
                yield b, row, "mask", row - visible
            elif row < real[b] + counts[b]:
                yield b, row, "gold", row - real[b]


def largest(ours: np.ndarray, theirs: np.ndarray, where: np.ndarray | None = None) -> float:
    """Largest absolute difference, over the rows where `where` is True; NaN if an array holds NaN."""
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    if where is not None:
        difference = difference[where]
    return float(difference.max()) if difference.size else 0.0


def check_forward(g: Golden) -> Iterator[Line]:
    """Encoder, logits and hidden rows of all families, length head, passes of one family."""
    vocab = g.config.vocab_size
    source_real = np.asarray(g.batch.source) != PAD
    yield Line(
        "out/encoder_out_TBC",
        largest(g.encoded.states, g["out/encoder_out_TBC"].swapaxes(0, 1), source_real),
        ACTIVATION,
    )
    hidden = jax.jit(g.net.train_rows)(g.params, g.encoded, g.batch)
    logits = {name: g.net.project(g.params, hidden[name])[..., :vocab] for name in ("ar", "nar", "aux")}
    ar_real = g["in/ar_target"] != PAD
    masked_real = np.asarray(g["in/nar_query_w"] != PAD)
    yield Line("out/ar_logits", largest(logits["ar"], g["out/ar_logits"], ar_real), ACTIVATION)
    yield Line("out/query_logits", largest(logits["aux"], g["out/query_logits"], masked_real), ACTIVATION)
    masked_tokens = jnp.where(jnp.asarray(_mask_flags(g)), UNK, g.batch.target)
    nar_rows = jax.jit(g.net.nar_rows)
    plain = nar_rows(g.params, g.encoded, masked_tokens)
    plain_logits = g.net.project(g.params, plain)[..., :vocab]
    content = {"out/content_logits": (logits["nar"], plain_logits), "out/content_state": (hidden["nar"], plain)}
    for name, (mask_rows, visible_rows) in content.items():
        if name not in g:
            continue
        errors = [0.0]
        # No row reads the gold rows of the last layer, so they are not computed; those of other layers show in AUX.
        for b, row, kind, at in g.content_rows():
            if kind != "gold":
                ours = mask_rows[b, at] if kind == "mask" else visible_rows[b, at]
                errors.append(largest(ours, g[name][b, row]))
        yield Line(name, max(errors), ACTIVATION)
    if "out/query_state" in g:
        yield Line("out/query_state", largest(hidden["aux"], g["out/query_state"], masked_real), ACTIVATION)
    if "out/length_logits" in g:
        yield Line("out/length_logits", largest(g.encoded.length_logits, g["out/length_logits"]), ACTIVATION)
        yield Line("out/length_tgt", largest((g.batch.target != PAD).sum(1), g["out/length_tgt"]), EXACT)
    if "in/cmlm_tokens" in g:
        tokens = g["in/cmlm_tokens"]
        rows = g.net.project(g.params, nar_rows(g.params, g.encoded, jnp.asarray(tokens)))[..., :vocab]
        yield Line(
            "out/cmlm_logprobs", largest(jax.nn.log_softmax(rows), g["out/cmlm_logprobs"], tokens != PAD), ACTIVATION
        )
    if "out/ar_teacher_forced_logprobs" in g:
        rows = jax.jit(g.net.ar_rows)(g.params, g.encoded, jnp.asarray(g["in/ar_content_w"]))
        ours = jax.nn.log_softmax(g.net.project(g.params, rows)[..., :vocab])
        name = "out/ar_teacher_forced_logprobs"
        yield Line(name, largest(ours, g[name], ar_real), ACTIVATION)


def _mask_flags(g: Golden) -> np.ndarray:
    flags = np.zeros(g["in/target"].shape, bool)
    for b, count in enumerate(np.asarray(g.batch.masked_count)):
        flags[b, np.asarray(g.batch.masked)[b, :count]] = True
    return flags


def check_rows(g: Golden) -> Iterator[Line]:
    """Embeddings of the row groups, states of AR content rows layer by layer, and attention masks."""
    decoder = g.net.bound(g.params).decoder
    table = g.net.bound(g.params).embed_tokens
    ar = jnp.asarray(g["in/ar_content_w"])
    layout = row_layout(g.batch, g.net.config, g.net.specials, ("ar", "nar", "aux"))
    rows = decoder.embed_groups(table, layout.groups, len(g.batch.target))
    group = {name: rows[:, place] for name, place in layout.row_slices.items()}
    errors = [
        largest(
            (group["aux_gold"] if kind == "gold" else group["nar"])[b, _nar_at(g, b, kind, at)],
            g["out/nar_content_embed"][b, row],
        )
        for b, row, kind, at in g.content_rows()
    ]
    yield Line("out/nar_content_embed", max(errors), ACTIVATION)
    masked_real = g["in/nar_query_w"] != PAD
    yield Line("out/nar_query_embed", largest(group["aux_query"], g["out/nar_query_embed"], masked_real), ACTIVATION)
    ar_real = ar != PAD
    inner = [group["ar_content"]]
    for layers in range(1, g.config.decoder_layers + 1):
        net = Janus(replace(g.config, ar_stream="content", decoder_layers=layers), g.net.specials)
        inner.append(jax.jit(net.ar_rows)(g.params, g.encoded, ar))
    for i, states in enumerate(inner):
        name = f"out/ar_content_inner_{i}_TBC"
        yield Line(name, largest(states, g[name].swapaxes(0, 1), np.asarray(ar_real)), ACTIVATION)
    yield from _check_masks(g)


def _nar_at(g: Golden, b: int, kind: str, at: int) -> int:
    return int(g.batch.masked[b, at]) if kind == "mask" else int(at)


def _check_masks(g: Golden) -> Iterator[Line]:
    real = g.batch.target != PAD
    bridge = np.asarray(bridge_mask(real, g.batch.masked, g.batch.masked_count))
    nar = np.asarray(jnp.broadcast_to(bidirectional_mask(real), (*real.shape, real.shape[1])))
    masked, length = g.batch.masked.shape[1], real.shape[1]
    rows = list(g.content_rows())
    wrong = {"content": 0, "query": 0}

    def attends(b: int, line: np.ndarray, kind: str, at: int) -> bool:
        if kind == "gold":
            return bool(line[length + at]) if len(line) > length else False
        return bool(line[_nar_at(g, b, kind, at)])

    for b, row, kind, at in rows:
        line = bridge[b, at] if kind == "gold" else nar[b, _nar_at(g, b, kind, at)]
        for c, column, other, other_at in rows:
            if c == b:
                wrong["content"] += attends(b, line, other, other_at) == bool(g["out/content_mask"][b, row, column])
    for b, rank in zip(*np.nonzero(g["in/nar_query_w"] != PAD), strict=True):
        for c, column, other, other_at in rows:
            if c == b:
                attended = attends(b, bridge[b, masked + rank], other, other_at)
                wrong["query"] += attended == bool(g["out/query_mask"][b, rank, column])
    for name, count in wrong.items():
        yield Line(f"out/{name}_mask", float(count), EXACT)


def check_losses(g: Golden) -> Iterator[Line]:
    """Every loss term, the totals of all objectives, and the gradients of the joint total."""
    divisors = batch_divisors(g.batch, g.config, g.objective, PAD)

    def total(params, objective=g.objective):
        value, metrics = loss(g.net, objective, params, g.batch, divisors=divisors, step=jnp.int32(0))
        return value, metrics

    (value, metrics), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(g.params)
    scale = float(g["loss/sample_size"]) if g.pretraining else 1.0
    yield Line("loss/total", _relative(value * scale, g["loss/total"]), LOSS)
    streams = {"ar": "ar", "content": "nar", "query": "aux"}
    for theirs, ours in streams.items():
        names = (
            [(f"loss/{theirs}_nll_sum", f"nll/{ours}")]
            if g.pretraining
            else [(f"loss/{theirs}_ls", f"loss/{ours}"), (f"loss/{theirs}_nll", f"nll/{ours}")]
        )
        for name, metric in names:
            # nll/... is per token of its own kind, the released sums are sums.
            count = divisors["rows/ar" if ours == "ar" else "rows/masked"] if g.pretraining else 1.0
            yield Line(name, _relative(metrics[metric] * count, g[name]), LOSS)
    for theirs, ours in {"ar_content": "ar_nar", "content_query": "nar_aux", "ar_query": "ar_aux"}.items():
        suffix = ("_sum_UNUSED" if theirs == "ar_content" else "_sum") if g.pretraining else ""
        name = f"loss/kl_{theirs}{suffix}"
        yield Line(name, _relative(metrics[f"loss/kl_{ours}"] * scale, g[name]), KL)
    if not g.pretraining:
        yield Line("loss/length", _relative(metrics["loss/length"], g["loss/length"]), LOSS)
        for name in ("ar", "cmlm"):
            weights = LossWeights(nar=1.0) if name == "cmlm" else LossWeights()
            objective = ObjectiveConfig(name=name, weights=weights)
            other = jax.jit(partial(total, objective=objective))(g.params)[0]
            yield Line(f"loss/{name}_only_total", _relative(other, g[f"loss/{name}_only_total"]), LOSS)
    ours = params_to_released(gradients, g.config)
    for name in sorted(n for n in g.arrays if n.startswith("grad/")):
        theirs = g[name]
        bound = 1e-4 * float(np.abs(theirs).max()) + 1e-6
        key = name[len("grad/") :]
        yield Line(name, largest(ours[key] * scale, theirs) if key in ours else float("nan"), bound)


def check_decoding(g: Golden) -> Iterator[Line]:
    """Searches with the released rules: AR without the fault of the released cache, NAR without its early stop."""
    limit = min(256, g.net.config.max_positions)
    source = np.asarray(g["in/src_tokens"], np.int32)
    for name in sorted(g.arrays):
        if match := re.fullmatch(r"dec/ar_beam(\d+)_full_tokens", name):
            longest = g[name].shape[-1] - 1  # the last slot is for the forced eos
            settings = DecodeConfig(
                rules="released",
                nbest=int(match[1]),
                ar=ArDecode(beam=int(match[1]), max_length_a=0.0, max_length_b=max(longest, 40)),
            )
            best = MODES["ar"].run(DecodeRequest(g.net, g.params, source, settings, limit)).hypotheses
            yield from _check_hypotheses(g, name, best.tokens, best.lengths, best.scores, best.token_scores)
        elif match := re.fullmatch(r"dec/nar_iter(\d+)_lb(\d+)_force_tokens", name):
            passes, length_beam = int(match[1]) + 1, int(match[2])
            settings = DecodeConfig(mode="nar", rules="released", nar=NarDecode(passes=passes, length_beam=length_beam))
            best = MODES["nar"].run(DecodeRequest(g.net, g.params, source, settings, limit)).hypotheses
            front = ((0, 0), (1, 0))  # the released arrays include bos, with score 0
            tokens, scores = np.pad(best.tokens[:, 0], front), np.pad(best.token_scores[:, 0], front)
            yield from _check_hypotheses(g, name, tokens, best.lengths[:, 0] + 1, best.scores[:, 0], scores)


def _check_hypotheses(g: Golden, name: str, tokens, lengths, scores, token_scores) -> Iterator[Line]:
    """Tokens [..., L] must be equal, scores [...] and token scores [..., L] nearly; golden arrays pad with -1 and NaN."""
    width = g[name].shape[-1]
    real = np.arange(np.asarray(tokens).shape[-1]) < np.asarray(lengths)[..., None]
    ours = np.where(real, tokens, -1)
    wrong = (ours[..., :width] != g[name]).sum() + (ours[..., width:] != -1).sum()
    yield Line(name, float(wrong), EXACT)
    stem = name.removesuffix("tokens")
    yield Line(f"{stem}score", largest(scores, g[f"{stem}score"]), ACTIVATION)
    theirs = g[f"{stem}posscores"]
    where = real[..., :width] & np.isfinite(theirs)
    yield Line(f"{stem}posscores", largest(np.asarray(token_scores)[..., :width], theirs, where), ACTIVATION)


def check_remask_counts(arrays: dict[str, np.ndarray]) -> list[Line]:
    """How many slots are masked again after each pass, for targets of 2 and more tokens."""
    lines = []
    for name, theirs in arrays.items():
        passes = int(name.removeprefix("max_step_"))
        ours = [np.asarray(remask_counts(length, passes)) for length in range(2, 2 + len(theirs))]
        lines.append(Line(name, largest(np.stack(ours), theirs), EXACT))
    return lines


def _relative(ours: jax.Array, theirs: np.ndarray) -> float:
    return abs(float(ours) - float(theirs)) / abs(float(theirs))


def check(path: Path) -> list[Line]:
    """All comparisons for the arrays of a file."""
    arrays = dict(np.load(path))
    if all(name.startswith("max_step_") for name in arrays):
        return check_remask_counts(arrays)
    golden = Golden(arrays)
    with jax.default_matmul_precision("highest"):
        return [*check_forward(golden), *check_rows(golden), *check_losses(golden), *check_decoding(golden)]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    failures = 0
    for path in parser.parse_args(argv).files:
        lines = check(path)
        print(path.name)
        for line in lines:
            print(
                f"  {'ok  ' if line.passed else 'FAIL'} {line.name:60s} {line.error:.2e} (allowed {line.allowed:.2e})"
            )
        failed = sum(not line.passed for line in lines)
        print(f"  {len(lines) - failed} of {len(lines)} arrays within tolerance")
        failures += failed
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
