"""A batch to decode, the result of a batch, and the output of a sentence.

Legend: B sentences of a batch, S padded source length, L longest hypothesis, T target slots, P prefix tokens, M gaps at
most, n outputs a sentence.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from janus_jax.config import DecodeConfig
from janus_jax.decode.search.candidates import Trace
from janus_jax.decode.search.draft_policy import DraftPolicy
from janus_jax.decode.search.verify import Passes
from janus_jax.model import Janus
from janus_jax.types import Array, Hypotheses, Params


@dataclass(frozen=True)
class DecodeRequest:
    """One batch to decode. Sentences that fill up the batch are all padding; they get no output."""

    net: Janus
    params: Params
    source: np.ndarray  # [B, S] int32, bos ... eos, padding
    decode: DecodeConfig
    max_target_length: int  # tokens, bos and eos counted
    trained: tuple[str, ...] | None = None  # modes that the model was trained for; None: all
    lines: np.ndarray | None = (
        None  # [B] int32, line number of each sentence, for sampling; default: its number in the batch
    )
    prefix: np.ndarray | None = None  # [B, P] int32, tokens that an output has to begin with, padded
    start: np.ndarray | None = None  # [B, T] int32, targets to complete, bos ... eos with masks, padded
    filling: np.ndarray | None = None  # [B, M] int32, tokens of the gaps of `start`, to score instead of search
    trace: bool = False  # keep the tokens of each pass
    policy: DraftPolicy | None = None  # of the batch before


@dataclass(frozen=True)
class DecodePlan:
    """What is known before the first batch, for the check of a mode."""

    net: Janus
    decode: DecodeConfig
    max_target_length: int  # tokens, bos and eos counted
    trained: tuple[str, ...] | None = None  # modes that the model was trained for; None: all
    longest_source: int = 0  # tokens, bos and eos counted; 0: the sentences are not known yet
    has_targets: bool = False  # targets to complete are given


@dataclass(frozen=True)
class DecodeResult:
    """The result of one batch."""

    hypotheses: Hypotheses  # [B, n, L]
    statistics: dict[str, Array]  # [B] int32 each; "passes": decoder passes until the sentence was finished
    trace: Trace | Passes | None = None  # nar: of the best candidate, [P, B, T]; speculative: the drafts of each pass
    policy: DraftPolicy | None = None  # for the next batch
    merge_repeats: bool = False  # tokens of an output that equal the one before them are to be dropped
    has_token_scores: bool = True  # False: the search sums over paths, and no token has a share of the score


@dataclass(frozen=True)
class Output:
    """The output of one sentence."""

    text: str  # detokenised; empty if the generator has no tokenizer
    # ar and reranked: sum of log-probabilities / tokens ** lenpen; nar: mean log-probability of the filled tokens, plus
    # log p(length) / tokens where no targets are given; ctc: log p(output) with the blank penalty, or with beam 1 that of
    # its best alignment; dag: log p(output, path), or of search beam log p(output), / tokens ** length_beta; infill: mean
    # log-probability of the gap tokens; 0 for an empty line. merge_repeats without reranking: of the tokens before merging.
    score: float
    tokens: list[int]  # without bos and eos
    statistics: dict[str, int] = field(default_factory=dict)  # "passes" of the decoder, and others by mode
    # With nbest > 1 the next best outputs, without statistics. Samples are in the order of drawing; empty outputs are last.
    others: tuple["Output", ...] = ()
    # Log-probability of each of `tokens` and of eos behind them. It is 0 for eos in modes nar, ctc and infill, which predict
    # none, and for given tokens in infill. Empty for merged outputs that were not reranked, and for beams of ctc and dag.
    token_scores: list[float] = field(default_factory=list)
    # With trace a record of each pass. nar: tokens (text), scores (log-probabilities) and remasked (flags), a list over the
    # slots. speculative: tokens (text) that the pass emitted, eos counted; drafted (text), the tokens that it verified;
    # accepted, how many of them it emitted. Empty if greedy search ran, because drafts would not have paid.
    trace: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class SentenceResult:
    """The result of one sentence, as numbers on the host."""

    ranked: list[tuple[list[int], float, list[float]]]  # tokens, score and token scores, best first
    statistics: dict[str, int]
    trace: list[dict[str, Any]]
