"""A batch to decode, and what came of it.

Legend: B sentences of a batch, S padded source length, L longest hypothesis, T target slots, P prefix tokens.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from janus_jax.config import DecodeConfig
from janus_jax.decode.candidates import Trace
from janus_jax.model import Janus
from janus_jax.types import Array, Hypotheses, Params


@dataclass(frozen=True)
class Request:
    """One batch to decode."""

    net: Janus
    params: Params
    source: np.ndarray  # [B, S] bos ... eos, padding; empty rows below
    decode: DecodeConfig
    max_target_length: int  # bos and eos counted
    lines: np.ndarray | None = None  # [B] int32, which line a row is, for sampling; by default its number in the batch
    prefix: np.ndarray | None = None  # [B, P] tokens that a hypothesis has to begin with, padded
    start: np.ndarray | None = None  # nar, infill: [B, T] targets to fill, bos ... eos with masks, padded
    filling: np.ndarray | None = None  # infill: [B, M] tokens of the gaps, to score instead of search
    trace: bool = False  # nar: keep what each pass did
    outlook: Any = None  # speculative, infill: that of the batch before

    @property
    def static(self) -> DecodeConfig:
        """The settings that compiled code depends on."""
        return replace(self.decode, seed=0, batch_tokens=1, mode="ar", draft="auto")


@dataclass(frozen=True)
class Found:
    """What became of a batch."""

    hypotheses: Hypotheses  # [B, n-best, L]
    statistics: dict[str, Array]  # [B] int32 each; "passes": decoder passes while the sentence was not finished
    trace: Trace | None = None  # of the best candidate, [P, B, T]
    outlook: Any = None  # what drafting is expected to bring, for the next batch


def rows_per_sentence(decode: DecodeConfig) -> int:
    """How many rows a search keeps for a sentence."""
    if decode.mode == "ar":
        return decode.nbest if decode.sample else decode.beam
    if decode.mode == "ctc":
        return decode.beam if decode.rerank == "ar" else 2  # mostly two rows a source token
    return {"nar": decode.length_beam, "speculative": decode.draft_lengths, "infill": 1}[decode.mode]
