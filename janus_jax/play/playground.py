"""What the playground computes, without the page: one sentence by every mode, with times, and what its passes looked like.

Legend: R rows of a pass, L tokens.
"""

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import ConfigError
from janus_jax.decode import Generator, Output
from janus_jax.decode.batching import bucket, pad_sources
from janus_jax.decode.gaps import GAP
from janus_jax.decode.modes.source_rows import offered_tokens
from janus_jax.model import Janus
from janus_jax.model.attention import NEGATIVE
from janus_jax.types import Array, Params

# Settings that the page and its JSON endpoint may change, and to what: large values cost time and memory, and each new one
# compiles a program, which stays.
VALUES: dict[str, Sequence[Any]] = {
    "beam": range(1, 11),
    "nbest": range(1, 11),
    "passes": range(1, 21),
    "length_beam": range(1, 11),
    "draft_passes": range(1, 5),
    "lenpen": (0.0, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0),
    "blank_penalty": (0.0, 0.5, 1.0, 1.5, 2.0),
    "no_repeat_ngram": range(5),
    "search": ("greedy", "lookahead", "viterbi", "beam"),
    "rerank": ("none", "ar"),
    "draft": ("auto", "always", "never"),
}
_CHARACTERS_PER_TOKEN = 32  # a longer text isn't even tokenized


@dataclass(frozen=True)
class Trial:
    """A mode with settings, as the page compares them."""

    name: str
    label: str
    mode: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    trace: bool = False


@dataclass(frozen=True)
class Decoded:
    """The output of a trial."""

    trial: Trial
    output: Output
    seconds: float  # of the faster of two calls: the first one may compile
    pieces: list[str]  # the output's tokens as the vocabulary writes them


@dataclass(frozen=True)
class CtcRows:
    """What each row of a CTC pass emits; lists over the R rows of the sentence."""

    pieces: list[str]  # the likeliest token
    tokens: list[float]  # its probability
    blanks: list[float]  # the probability of the blank
    chosen: list[bool]  # whether the best path takes the token there, not the blank


@dataclass(frozen=True)
class DagVertices:
    """The graph of a DAG pass; lists and arrays over its R vertices."""

    pieces: list[list[str]]  # the likeliest tokens of each vertex
    tokens: np.ndarray  # [R, k] their probabilities
    links: np.ndarray  # [R, R] probabilities, from axis 0 to axis 1
    visits: np.ndarray  # [R] the probability that a path comes through the vertex
    path: list[int]  # vertices of the lookahead output, the first and the last one too


class InputError(ValueError):
    """The page's input cannot be decoded; the message names the fix."""


class Playground:
    """Decodes one sentence at a time by all modes that a model was trained for.

    One thread of its own runs the model, so that calls of a server's threads take turns.
    """

    def __init__(self, generator: Generator):
        """Args:
        generator: the model.
        """
        self.generator = generator
        self._thread = ThreadPoolExecutor(1, "model")

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest sentence, bos and eos not counted."""
        return self.generator.max_source_length - 2

    def trials(self, beam: int = 5, passes: int = 4) -> list[Trial]:
        """What the page compares: the modes that the model can decode by.

        Args:
          beam: hypotheses of each beam search; each gives so many outputs.
          passes: of mask-predict.
        """
        one = {"nbest": 1}  # whatever the checkpoint's own settings are
        ar = {**one, "sample": False}
        trials = [
            Trial("ar", "AR, greedy", "ar", {**ar, "beam": 1}),
            Trial("beam", f"AR, beam {beam}", "ar", {**ar, "beam": beam, "nbest": beam}),
            Trial("speculative", "speculation", "speculative", {**ar, "draft": "always"}, trace=True),
            Trial("nar", f"mask-predict, passes: {passes}", "nar", {**one, "passes": passes}, trace=True),
            Trial("ctc", "CTC, best path", "ctc", {**one, "beam": 1, "rerank": "none"}),
            Trial("ctc_beam", f"CTC, beam {beam}", "ctc", {"beam": beam, "nbest": beam}),
            Trial("dag", "DAG, lookahead", "dag", {**one, "search": "lookahead", "rerank": "none"}),
            Trial("dag_beam", f"DAG, beam {beam}", "dag", {"search": "beam", "beam": beam, "nbest": beam}),
        ]
        able = []
        for trial in trials:
            if trial.settings.get("beam") == 1 and trial.name.endswith("beam"):
                continue  # the search without a beam stands there
            # The settings of a checkpoint may exclude a mode, as no_repeat_ngram excludes speculation.
            with contextlib.suppress(ConfigError):
                self.generator.settings({"mode": trial.mode, **trial.settings})
                able.append(trial)
        return able

    def check(self, sentence: Any) -> str:
        """The sentence without spaces at its ends.

        Raises:
          InputError: no text, several lines, or too long for the model.
        """
        if not isinstance(sentence, str) or not sentence.strip():
            raise InputError("no text: type a sentence")
        sentence = sentence.strip()
        try:
            sentence.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"character {error.start + 1} is half of a surrogate pair: remove it") from error
        if len(sentence.splitlines()) > 1:
            raise InputError(f"{len(sentence.splitlines())} lines: type one sentence, without line breaks")
        tokens = len(sentence)
        if tokens <= _CHARACTERS_PER_TOKEN * self.most_tokens:
            tokens = len(self.generator.tokenizer.encode_batch([sentence])[0])
            if tokens <= self.most_tokens:
                return sentence
            raise InputError(f"{tokens} tokens: this model reads at most {self.most_tokens}; shorten the sentence")
        raise InputError(f"{tokens} characters: this model reads at most {self.most_tokens} tokens; shorten the text")

    def check_settings(self, mode: Any, settings: Any) -> dict[str, Any]:
        """The settings of a call from outside.

        Raises:
          InputError: no settings, a mode that the model was not trained for, or as `check_values`.
        """
        if not isinstance(mode, str) or not isinstance(settings, Mapping):
            raise InputError('a call has a mode and settings, for example "ar" and {"beam": 4}')
        if mode not in self.generator.trained and not self.generator.decode_config.allow_untrained:
            raise InputError(
                f"mode: {mode!r:.40}, but this model was trained only for {' or '.join(self.generator.trained)}; choose that"
            )
        self.check_values(settings)
        return dict(settings)

    def check_values(self, settings: Mapping[str, Any]) -> None:
        """Raises InputError for a setting that a visitor may not change, or a value above its limit."""
        for name, value in settings.items():
            if name not in VALUES:
                raise InputError(f"{name}: not to be set here; the settings are {', '.join(VALUES)}")
            # bool is an int in Python
            if isinstance(value, bool | list | dict) or value not in VALUES[name]:
                raise InputError(f"{name}: {value!r:.40} is not one of {', '.join(map(str, VALUES[name]))}")

    def decode(self, sentence: str, trial: Trial, target: str | None = None) -> Decoded:
        """Decodes a sentence twice and takes the time of the faster call.

        Args:
          sentence: of `check`.
          trial: how.
          target: text with gaps, for modes that fill them.

        Raises:
          ConfigError, ValueError: as `Generator.generate`.
        """
        targets = None if target is None else [target]

        def generate() -> tuple[list[Output], float]:
            start = time.perf_counter()
            outputs = self.generator.generate(
                [sentence], mode=trial.mode, trace=trial.trace, targets=targets, **trial.settings
            )
            return outputs, time.perf_counter() - start

        _, first = self._thread.submit(generate).result()
        outputs, second = self._thread.submit(generate).result()
        pieces = self.generator.tokenizer.pieces(outputs[0].tokens)
        return Decoded(trial, outputs[0], min(first, second), pieces)

    def words(self, tokens: Sequence[int]) -> list[tuple[str, int]]:
        """The words of an output, each with the number of its tokens."""
        texts = self.generator.tokenizer.decode_batch([tokens[: end + 1] for end in range(len(tokens))])
        # A token belongs to the last word of the text that ends with it.
        places = [max(len(text.split()) - 1, 0) for text in texts]
        words = texts[-1].split() if texts else []
        return [(word, places.count(place)) for place, word in enumerate(words)]

    def with_gaps(self, words: Sequence[tuple[str, int]], removed: Sequence[int]) -> str:
        """The text of `words` with as many `<mask>` in place of a removed word as it has tokens.

        Args:
          words: of `words`.
          removed: places of the words to remove.

        Raises:
          InputError: no word is removed, or there is no such word.
        """
        if not removed or not set(removed) <= set(range(len(words))):
            raise InputError("no gap: take away one of the words of the output")
        parts = []
        for place, (word, count) in enumerate(words):
            parts += [GAP] * max(count, 1) if place in removed else [word]
        return " ".join(parts)

    @property
    def filling_mode(self) -> str | None:
        """The mode that fills gaps: infill or nar; None if the model was trained for neither."""
        return next((mode for mode in ("infill", "nar") if mode in self.generator.trained), None)

    def fill(self, sentence: str, target: str) -> Decoded:
        """Fills the gaps of a target.

        Args:
          sentence: the source, of `check`.
          target: of `with_gaps`.
        """
        mode = self.filling_mode
        if mode is None:
            raise InputError("this model was not trained to fill gaps (objective janus or cmlm)")
        settings = {"nbest": 1} if mode == "infill" else {"nbest": 1, "passes": 4}
        return self.decode(sentence, Trial("fill", "infilling", mode, settings), target)

    def ctc_rows(self, sentence: str) -> CtcRows:
        """The rows of a CTC pass."""
        net, tokenizer = self.generator.net, self.generator.tokenizer
        call = functools.partial(_ctc_rows, self.generator.params, self._source(sentence), net=net)
        tokens, log_probs, blank, real = jax.device_get(self._thread.submit(call).result())
        rows = int(real.sum())
        chosen = log_probs[:rows] > blank[:rows] - self.generator.decode_config.ctc.blank_penalty
        return CtcRows(
            tokenizer.pieces(tokens[:rows].tolist()),
            np.exp(log_probs[:rows]).tolist(),
            np.exp(blank[:rows]).tolist(),
            chosen.tolist(),
        )

    def dag_vertices(self, sentence: str, offered: int = 3) -> DagVertices:
        """The graph of a DAG pass.

        Args:
          sentence: of `check`.
          offered: k, tokens of a vertex.
        """
        net, tokenizer = self.generator.net, self.generator.tokenizer
        call = functools.partial(_dag_vertices, self.generator.params, self._source(sentence), net=net, offered=offered)
        tokens, log_probs, links, real = jax.device_get(self._thread.submit(call).result())
        count = int(real.sum())
        tokens, log_probs = tokens[:count], log_probs[:count]
        scores = np.where(links[:count, :count] > NEGATIVE / 2, links[:count, :count], -np.inf)
        path, at = [0], 0
        preferred = scores + self.generator.decode_config.dag.beta * log_probs[:, 0]
        while at != count - 1 and len(path) <= count:
            at = int(preferred[at].argmax())
            path.append(at)
        links = np.exp(scores)
        visits = np.zeros(count)
        visits[0] = 1.0
        for vertex in range(1, count):
            visits[vertex] = visits[:vertex] @ links[:vertex, vertex]
        pieces = [tokenizer.pieces(row) for row in tokens.tolist()]
        pieces[0], pieces[-1] = tokenizer.pieces([net.specials.bos]), tokenizer.pieces([net.specials.eos])
        return DagVertices(pieces, np.exp(log_probs), links, visits, path)

    def as_json(self, decoded: Decoded) -> dict[str, Any]:
        """An output for programs: text, score, tokens, decoder passes, seconds, other outputs, the record of its passes."""
        ranked = [
            {"text": one.text, "score": float(one.score), "tokens": [int(token) for token in one.tokens]}
            for one in (decoded.output, *decoded.output.others)
        ]
        return {
            **ranked[0],
            "others": ranked[1:],
            "statistics": dict(decoded.output.statistics),
            "seconds": decoded.seconds,
            "trace": [dict(one) for one in decoded.output.trace],
        }

    def _source(self, sentence: str) -> np.ndarray:
        """The sentence as source tokens [1, S], padded to one of few lengths."""
        special = self.generator.net.specials
        ids = [special.bos, *self.generator.encoded([sentence])[0], special.eos]
        return pad_sources([ids], 1, bucket(len(ids)), special.pad)


def examples(sources: Sequence[str], count: int, playground: Playground) -> list[str]:
    """The first `count` different sources that the playground accepts."""
    accepted: dict[str, None] = {}
    for source in sources:
        if len(accepted) == count:
            break
        with contextlib.suppress(InputError):
            accepted[playground.check(source)] = None
    return list(accepted)


@functools.partial(jax.jit, static_argnames="net")
def _ctc_rows(params: Params, source: Array, *, net: Janus) -> tuple[Array, Array, Array, Array]:
    """Of the rows of a sentence: the likeliest token [R], its log-probability, that of the blank, and which are real."""
    encoded = net.encode(params, source)
    rows, real = net.source_rows(params, "ctc", source, encoded)
    tokens, log_probs, blank = offered_tokens(net, params, rows, 1, blank=True)
    return tokens[0, :, 0], log_probs[0, :, 0], blank[0], real[0]


@functools.partial(jax.jit, static_argnames=("net", "offered"))
def _dag_vertices(params: Params, source: Array, *, net: Janus, offered: int) -> tuple[Array, Array, Array, Array]:
    """Of the vertices of a sentence: tokens and log-probabilities [R, k], links [R, R], and which are real [R]."""
    encoded = net.encode(params, source)
    rows, real = net.source_rows(params, "dag", source, encoded)
    tokens, log_probs, _ = offered_tokens(net, params, rows, offered)
    links = net.dag_links(params, rows, real)
    # bos and eos, for certain
    place = jnp.arange(real.shape[1])
    ends = (place == 0) | (place == real.sum() - 1)
    return tokens[0], jnp.where(ends[:, None], 0.0, log_probs[0]), links[0], real[0]
