"""Mask-predict bound to the model: lengths from the length head, and targets whose masks the NAR rows fill.

Legend: B sentences of a batch, S padded source length, T target slots, K length candidates a sentence.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.config import DecodeConfig
from janus_jax.decode.search.candidates import Candidates, MaskPredictRules, candidate_lengths, check_length_count
from janus_jax.decode.search.mask_predict import Schedule, mask_predict
from janus_jax.decode.types import DecodePlan
from janus_jax.model import Janus
from janus_jax.types import Array, Encoded, Params


@dataclass(frozen=True)
class FillSettings:
    """Settings of mask-predict that compiled code depends on."""

    passes: int
    schedule: Schedule
    early_stop: bool
    revise: bool
    rules: MaskPredictRules


def fill_settings(decode: DecodeConfig, passes: int, rules: MaskPredictRules) -> FillSettings:
    """Settings of mask-predict in so many passes; the rest is config.decode.nar."""
    nar = decode.nar
    return FillSettings(passes, nar.mask_schedule, nar.early_stop, nar.revise, rules)


def rules_of(decode: DecodeConfig, gaps: bool = False) -> MaskPredictRules:
    """The rules of mask-predict; `gaps`: for targets of which a part is fixed."""
    if decode.rules == "released":
        return MaskPredictRules.RELEASED
    if gaps:
        return MaskPredictRules.GAPS
    return replace(MaskPredictRules.DEFAULT, lengths=decode.nar.lengths)


@functools.partial(jax.jit, static_argnames=("net", "rules", "limit", "count"))
def run_lengths(
    params: Params, source: Array, *, net: Janus, rules: MaskPredictRules, limit: int, count: int
) -> tuple[Encoded, Array]:
    """Encodes source [B, S], and takes the lengths [B, count] to try from the length head."""
    encoded = net.encode(params, source)
    lengths = candidate_lengths(encoded.length_logits, count, limit=limit, rules=rules)
    # Sentences that are all padding get bos and eos.
    return encoded, jnp.where(jnp.any(encoded.mask, axis=1, keepdims=True), lengths, 2)


def longest_target(net: Janus, max_target_length: int) -> int:
    """The longest target that the length head can name, bos and eos counted, within `max_target_length`."""
    return min(max_target_length, net.config.length_classes - 1)


def check_lengths(plan: DecodePlan, count: int) -> None:
    """Raises ValueError if the length head has fewer than `count` lengths to choose from."""
    if rules_of(plan.decode).lengths == "top":
        check_length_count(count, longest_target(plan.net, plan.max_target_length), plan.net.config.length_classes)


def fill(
    net: Janus,
    params: Params,
    encoded: Encoded,
    projected: Any,
    lengths: Array,
    start: Array | None,
    settings: FillSettings,
    limit: int,
    trace: bool = False,
) -> Candidates:
    """Mask-predict by the NAR rows: fills targets of `lengths` [B, K], or the masks of `start` [B, K, T]; T = limit."""
    return mask_predict(
        lambda tokens, slots: net.nar_rows(params, encoded, tokens, slots, projected),
        lengths,
        passes=settings.passes,
        specials=net.specials,
        limit=limit,
        vocab_size=net.config.vocab_size,
        rules=settings.rules,
        start=start,
        schedule=settings.schedule,
        early_stop=settings.early_stop,
        revise=settings.revise,
        project_fn=functools.partial(net.project, params),
        trace=trace,
    )
