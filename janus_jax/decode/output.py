"""What became of a sentence, on the host."""

from dataclasses import dataclass, field

import jax

from janus_jax.decode.candidates import Trace
from janus_jax.decode.request import Found
from janus_jax.types import Specials


@dataclass(frozen=True)
class Output:
    """What became of one sentence."""

    text: str  # detokenised; empty where the generator has no tokenizer
    # AR and rerank: sum of log-probabilities / tokens ** lenpen; NAR: mean of the filled tokens'; CTC: log p(output), less
    # the blank penalties; 0 for an empty line
    score: float
    tokens: list[int]  # without bos and eos
    statistics: dict[str, int] = field(default_factory=dict)  # "passes" of the decoder, and more by mode
    others: tuple["Output", ...] = ()  # with nbest > 1 the next best, without statistics
    # With trace: for each pass tokens (text), scores (log-probabilities) and remasked (flags), a list for each slot
    trace: tuple[dict[str, list], ...] = ()


@dataclass(frozen=True)
class Row:
    """What a search found for one sentence, as numbers."""

    ranked: list[tuple[list[int], float]]  # tokens and score, best first
    statistics: dict[str, int]
    trace: list[dict[str, list]]


def rows_of(found: Found, count: int, specials: Specials) -> list[Row]:
    """The first `count` rows of a batch; waits for them."""
    best = found.hypotheses
    tokens, lengths, scores = jax.device_get((best.tokens, best.lengths, best.scores))
    statistics, trace = jax.device_get((found.statistics, found.trace))
    rows = []
    for row in range(count):
        # Every hypothesis ends in eos, which the caller doesn't need.
        ranked = [
            (tokens[row, n, : length - 1].tolist(), float(scores[row, n]))
            for n, length in enumerate(lengths[row].tolist())
            if length > 0
        ]
        seen = _passes_of(trace, row, specials) if trace else []
        rows.append(Row(ranked, {name: int(values[row]) for name, values in statistics.items()}, seen))
    return rows


def without_repeats(tokens: list[int]) -> list[int]:
    """Without the tokens that stand right after themselves."""
    return [token for i, token in enumerate(tokens) if not i or token != tokens[i - 1]]


def _passes_of(trace: Trace, row: int, specials: Specials) -> list[dict[str, list]]:
    """What each pass did with a sentence, without bos, the last eos and padding; passes after an early stop are left out."""
    done = []
    for tokens, scores, remasked in zip(
        trace.tokens[:, row], trace.scores[:, row], trace.remasked[:, row], strict=True
    ):
        inner = slice(1, int((tokens != specials.pad).sum()) - 1)
        if inner.stop > 0 and tokens[0] == specials.bos and tokens.any():
            done.append(
                {
                    "tokens": tokens[inner].tolist(),
                    "scores": [round(float(score), 4) for score in scores[inner]],
                    "remasked": remasked[inner].tolist(),
                }
            )
    return done
