"""What became of a sentence, on the host."""

from dataclasses import dataclass, field

from janus_jax.decode.candidates import Trace
from janus_jax.types import Specials


@dataclass(frozen=True)
class Output:
    """What became of one sentence."""

    text: str  # detokenised; empty where the generator has no tokenizer
    # AR and rerank: sum of log-probabilities / tokens ** lenpen; NAR: mean of the filled tokens'; 0 for an empty line
    score: float
    tokens: list[int]  # without bos and eos
    statistics: dict[str, int] = field(default_factory=dict)  # "passes" of the decoder, and more by mode
    others: tuple["Output", ...] = ()  # with nbest > 1 the next best, without statistics
    # With trace: for each pass tokens (text), scores (log-probabilities) and remasked (flags), a list for each slot
    trace: tuple[dict[str, list], ...] = ()


def without_repeats(tokens: list[int]) -> list[int]:
    """Without the tokens that stand right after themselves."""
    return [token for i, token in enumerate(tokens) if not i or token != tokens[i - 1]]


def passes_of(trace: Trace, row: int, specials: Specials) -> list[dict[str, list]]:
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
