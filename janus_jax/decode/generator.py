"""A model and sentences in, sentences out: tokenizing, batching, searching, putting back in order.

Legend: B sentences of a batch, S padded source length, L longest hypothesis, T target slots, K length candidates.
"""

import dataclasses
import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax import checkpoint, config, text
from janus_jax.config import DecodeConfig
from janus_jax.decode import batches
from janus_jax.decode.beam import beam_search
from janus_jax.decode.mask_predict import (
    MaskPredictRules,
    best_hypotheses,
    candidate_lengths,
    mask_predict,
    with_length_scores,
)
from janus_jax.model import Janus
from janus_jax.text import Tokenizer
from janus_jax.types import Array, Encoded, Hypotheses, Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """What became of one sentence."""

    text: str  # detokenised; empty where the generator has no tokenizer
    score: (
        float  # the search's own: AR sum of log-probabilities / tokens ** lenpen, NAR their mean; 0 for an empty line
    )
    tokens: list[int]  # without bos and eos


class Generator:
    """Decodes sentences with one set of weights, autoregressively or not.

    Example:
      generator = Generator.from_checkpoint("runs/demo/checkpoints")
      for output in generator.generate(["ein Satz"], mode="nar", passes=4):
          print(output.text)
    """

    def __init__(
        self,
        net: Janus,
        params: Params,
        tokenizer: Tokenizer | None,
        decode_config: DecodeConfig | None = None,
        *,
        max_source_length: int = 256,
        max_target_length: int = 256,
        trained: tuple[config.Mode, ...] | None = None,
    ):
        """Args:
        net: the model.
        params: its parameters; they may be sharded over a mesh.
        tokenizer: of both languages; None if only `generate_ids` is used.
        decode_config: settings used where a call gives none.
        max_source_length: tokens, bos and eos counted, to which a longer source is cut.
        max_target_length: tokens, bos and eos counted, of the longest output.
        trained: modes whose rows were trained, for a warning; None: all.
        """
        self.trained = tuple(MODES) if trained is None else trained
        self.net, self.params, self.tokenizer = net, params, tokenizer
        self.decode_config = decode_config or DecodeConfig()
        self.max_source_length = max_source_length
        self.max_target_length = min(max_target_length, net.config.max_positions)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> "Generator":
        """The generator of a training run or an imported model.

        Args:
          path: a checkpoint's step directory, or the directory that holds such (the latest is taken).

        Raises:
          FileNotFoundError, ValueError: as `checkpoint.load`.
        """
        loaded = checkpoint.load(path)
        tokenizer = text.load(loaded.tokenizer)
        trained, decode = TRAINED_MODES[loaded.config.objective.name], loaded.config.decode
        if decode.mode not in trained:
            decode = dataclasses.replace(decode, mode=trained[0])
        architecture = loaded.config.model
        if not architecture.vocab_size:
            architecture = dataclasses.replace(architecture, vocab_size=tokenizer.vocab_size)
        return cls(
            Janus(architecture, tokenizer.specials),
            loaded.params,
            tokenizer,
            decode,
            max_source_length=loaded.config.data.max_source_length,
            max_target_length=loaded.config.data.max_target_length,
            trained=trained,
        )

    def generate(
        self, lines: Sequence[str], *, progress: Callable[[int], Any] | None = None, **settings: Any
    ) -> list[Output]:
        """Decodes lines; as many outputs as lines, in their order, whatever the lines hold.

        An empty line gives an empty output. Longer lines than `max_source_length` are cut, with one warning.

        Args:
          lines: source text.
          progress: called with the number of sentences just done.
          **settings: any field of `DecodeConfig` (mode, beam, lenpen, passes, length_beam, ...), over the generator's own.

        Raises:
          ConfigError: an unknown or impossible setting.
          ValueError: no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("this generator has no tokenizer; give it one, or call generate_ids with token ids")
        return self.generate_ids(self.tokenizer.encode_batch(list(lines)), progress=progress, **settings)

    def generate_ids(
        self, sources: Sequence[Sequence[int]], *, progress: Callable[[int], Any] | None = None, **settings: Any
    ) -> list[Output]:
        """`generate` for sources that are tokenised already; bos, eos and padding around them may be there or not."""
        decode = self._settings(settings)
        if decode.mode not in self.trained:
            log.warning("mode %s: this model was trained for %s alone", decode.mode, " and ".join(self.trained))
        special = self.net.specials
        ids = [[i for i in map(int, source) if i not in (special.bos, special.eos, special.pad)] for source in sources]
        room = self.max_source_length - 2
        long = [number for number, source in enumerate(ids, 1) if len(source) > room]
        if long:
            some = ", ".join(map(str, long[:10])) + (", ..." if len(long) > 10 else "")
            log.warning(
                "%d of %d sources are longer than %d tokens and were cut: line %s", len(long), len(ids), room, some
            )
        framed = [[special.bos, *source[:room], special.eos] if source else [] for source in ids]
        outputs = [Output("", 0.0, []) for _ in framed]
        if progress:
            progress(sum(not source for source in framed))
        for indices, found in self._search([i for i, source in enumerate(framed) if source], framed, decode):
            texts = (
                self.tokenizer.decode_batch([tokens for tokens, _ in found]) if self.tokenizer else [""] * len(found)
            )
            for index, line, (tokens, score) in zip(indices, texts, found, strict=True):
                outputs[index] = Output(line, score, tokens)
            if progress:
                progress(len(indices))
        return outputs

    def _settings(self, changes: dict[str, Any]) -> DecodeConfig:
        values = {**dataclasses.asdict(self.decode_config), **{k: v for k, v in changes.items() if v is not None}}
        return config.resolve({"decode": values}).decode

    def _search(
        self, indices: list[int], framed: list[list[int]], decode: DecodeConfig
    ) -> Iterator[tuple[list[int], list[tuple[list[int], float]]]]:
        """Batches in whatever order: (indices, [(tokens, score)]). One batch runs while the one before is read."""
        search = MODES[decode.mode]
        hypotheses = {"ar": decode.beam, "nar": decode.length_beam}[decode.mode]
        plan = batches.plan_batches([len(framed[i]) for i in indices], decode.batch_tokens, hypotheses)
        running: deque = deque()
        for length, rows, members in plan:
            chosen = [indices[m] for m in members]
            source = batches.pad_sources([framed[i] for i in chosen], rows, length, self.net.specials.pad)
            running.append((chosen, search(self, source, decode)))
            if len(running) > 1:
                yield self._read(*running.popleft())
        while running:
            yield self._read(*running.popleft())

    def _read(self, indices: list[int], result: Hypotheses) -> tuple[list[int], list[tuple[list[int], float]]]:
        tokens, lengths, scores = jax.device_get((result.tokens[:, 0], result.lengths[:, 0], result.scores[:, 0]))
        # Every hypothesis ends in eos, which the caller doesn't need.
        return indices, [(tokens[row, : lengths[row] - 1].tolist(), float(scores[row])) for row in range(len(indices))]


def decode_ar(generator: Generator, source: np.ndarray, decode: DecodeConfig) -> Hypotheses:
    """Beam search (greedy when the beam is 1) for source [B, S], bos ... eos and padding -> Hypotheses [B, beam, L]."""
    cap = generator.max_target_length - 1  # bos is not counted
    inner = np.maximum((source != generator.net.specials.pad).sum(axis=1) - 2, 0)
    allowed = np.minimum((decode.max_length_a * inner + decode.max_length_b).astype(np.int32) + 1, cap)
    limit = min(int(decode.max_length_a * (source.shape[1] - 2) + decode.max_length_b) + 1, cap)
    max_lengths = np.where(inner > 0, allowed, 0)
    return _run_ar(generator.params, source, max_lengths, net=generator.net, decode=decode, limit=limit)


def decode_nar(generator: Generator, source: np.ndarray, decode: DecodeConfig) -> Hypotheses:
    """Mask-predict for source [B, S], bos ... eos and padding -> Hypotheses [B, 1, T-1]."""
    net = generator.net
    longest = min(generator.max_target_length, net.config.length_classes - 1)
    encoded, lengths = _run_lengths(generator.params, source, net=net, decode=decode, limit=longest)
    # The number of slots is part of a compiled shape, so that it is known only now.
    limit = min(batches.bucket(int(jnp.max(lengths)), at_least=8, halves=True), longest)
    return _run_nar(generator.params, encoded, lengths, net=net, decode=decode, limit=limit)


MODES: dict[config.Mode, Callable[[Generator, np.ndarray, DecodeConfig], Hypotheses]] = {
    "ar": decode_ar,
    "nar": decode_nar,
}


# The modes whose rows an objective trains.
TRAINED_MODES: dict[config.Objective, tuple[config.Mode, ...]] = {
    "ar": ("ar",),
    "cmlm": ("nar",),
    "janus": ("ar", "nar"),
}


# Jitted here and not per generator: a training loop that decodes with ever new parameters compiles once.
@functools.partial(jax.jit, static_argnames=("net", "decode", "limit"))
def _run_ar(
    params: Params, source: Array, max_lengths: Array, *, net: Janus, decode: DecodeConfig, limit: int
) -> Hypotheses:
    encoded = net.encode(params, source)
    released = decode.rules == "released"
    # Targets are about as long as sources: first a cache for that, the whole only where it is needed.
    stages = (source.shape[1],) if limit >= 1.5 * source.shape[1] else ()

    # With an eos start, eos stands before bos (which the first slot predicts): it goes into the cache beforehand.
    prefix = 1 if net.config.ar_start == "eos" else 0

    def empty_cache(length: int) -> Any:
        return net.init_cache(params, encoded, rows_per_sentence=decode.beam, max_length=length + prefix)

    first = empty_cache(stages[0] if stages else limit)
    if prefix:
        first = net.ar_step(params, encoded, jnp.full((source.shape[0] * decode.beam, 1), net.specials.eos), first)[1]

    def step(tokens: Array, cache: Any) -> tuple[Array, Any]:
        hidden, cache = net.ar_step(params, encoded, tokens, cache)
        return net.project(params, hidden[:, 0]), cache

    def grow(cache: Any, length: int) -> Any:
        def enlarge(have: Array, want: Any) -> Array:
            return jnp.pad(have, [(0, w - h) for h, w in zip(have.shape, want.shape, strict=True)])

        return jax.tree.map(enlarge, cache, jax.eval_shape(lambda: empty_cache(length)))

    return beam_search(
        step,
        net.reorder_cache,
        first,
        batch=source.shape[0],
        beam=decode.beam,
        max_lengths=max_lengths,
        limit=limit,
        specials=net.specials,
        vocab_size=net.config.vocab_size,
        lenpen=decode.lenpen,
        stop="released" if released else decode.stop,
        forbidden=(net.specials.pad,) if released else None,
        grow_fn=grow,
        stages=stages,
    )


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit"))
def _run_lengths(
    params: Params, source: Array, *, net: Janus, decode: DecodeConfig, limit: int
) -> tuple[Encoded, Array]:
    encoded = net.encode(params, source)
    lengths = candidate_lengths(encoded.length_logits, decode.length_beam, limit=limit, rules=_rules(decode))
    return encoded, jnp.where(jnp.any(encoded.mask, axis=1, keepdims=True), lengths, 2)  # empty rows: bos, eos


@functools.partial(jax.jit, static_argnames=("net", "decode", "limit"))
def _run_nar(
    params: Params, encoded: Encoded, lengths: Array, *, net: Janus, decode: DecodeConfig, limit: int
) -> Hypotheses:
    candidates = mask_predict(
        lambda tokens: net.nar_rows(params, encoded, tokens),
        lengths,
        passes=decode.passes,
        specials=net.specials,
        limit=limit,
        vocab_size=net.config.vocab_size,
        rules=_rules(decode),
        project_fn=functools.partial(net.project, params),
    )
    if _rules(decode).score_length:
        candidates = with_length_scores(candidates, encoded.length_logits, lengths)
    return best_hypotheses(candidates, net.specials, _rules(decode))


def _rules(decode: DecodeConfig) -> MaskPredictRules:
    return MaskPredictRules.RELEASED if decode.rules == "released" else MaskPredictRules()
