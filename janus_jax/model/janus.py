"""The public interface of the model: pure functions of (params, arrays).

Legend: B sentences, N hypotheses (B times the hypotheses per sentence), S source length, T target length, L cache
length, U AR slots, M masked tokens at most, k new tokens, R rows of a source (CTC, DAG), D model width, V vocabulary, V'
padded vocabulary, C length classes.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from janus_jax.config import ConfigError, ModelConfig
from janus_jax.model.attention import NEGATIVE
from janus_jax.model.decoder import Cache, Decoder, GapCache
from janus_jax.model.decoder_layer import Source
from janus_jax.model.draft_heads import DraftHeads
from janus_jax.model.encoder import Encoder
from janus_jax.model.layers import Table
from janus_jax.parallel import BATCH, constrain
from janus_jax.types import Batch, Encoded, Params, Specials

_FEW_ROWS = 8  # no more rows have their logits computed by `_few_logits`


class _Network(nn.Module):
    config: ModelConfig
    specials: Specials
    dtype: Any

    def setup(self) -> None:
        c = self.config
        self.embed_tokens = Table(padded_vocab(c), c.d_model, used=output_classes(c), split=True)
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype, self.specials)
        self.draft_heads = DraftHeads(c, self.dtype) if c.draft_heads else None

    def encode(self, source: jax.Array) -> Encoded:
        mask = source != self.specials.pad
        states = self.encoder(self.embed_tokens(source), mask)
        return Encoded(states, mask, self.decoder.length_logits(states, mask))

    def project(self, rows: jax.Array) -> jax.Array:
        return project(rows, self.embed_tokens.embedding, self.config, self.dtype)

    def project_source(self, encoded: Encoded) -> Source:
        return self.decoder.project_source(encoded)

    def train_rows(
        self,
        encoded: Encoded,
        batch: Batch,
        families: Collection[str],
        encoded_parallel: Encoded | None,
        shown: Mapping[str, jax.Array] | None,
    ) -> dict[str, jax.Array]:
        return self.decoder.train_rows(self.embed_tokens, encoded, batch, families, encoded_parallel, shown)

    def nar_rows(
        self, encoded: Encoded, tokens: jax.Array, slots: jax.Array | None, source: Source | None
    ) -> jax.Array:
        return self.decoder.nar_rows(self.embed_tokens, encoded, tokens, slots, source)

    def source_rows(
        self, family: str, tokens: jax.Array, encoded: Encoded, shown: jax.Array | None, source: Source | None
    ) -> tuple[jax.Array, jax.Array]:
        return self.decoder.source_rows(self.embed_tokens, family, tokens, encoded, shown, source)

    def dag_links(self, rows: jax.Array, real: jax.Array) -> jax.Array:
        return self.decoder.dag_links(rows, real)

    def init_cache(
        self, encoded: Encoded, per_sentence: int, max_length: int, source: Source | None, reordered: bool
    ) -> Cache:
        return self.decoder.init_cache(encoded, per_sentence, max_length, source, reordered)

    def ar_step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return self.decoder.ar_step(self.embed_tokens, tokens, cache)

    def draft_rows(self, encoded: Encoded, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        return self.draft_heads.rows(self.embed_tokens, encoded, rows, tokens)

    def draft_start(self, sentences: int) -> jax.Array:
        return self.draft_heads.first(sentences)

    def draft_step(self, encoded: Encoded, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        return self.draft_heads.step(self.embed_tokens, encoded, rows, tokens)

    def init_gaps(
        self, encoded: Encoded, tokens: jax.Array, max_gaps: int, source: Source | None
    ) -> tuple[jax.Array, GapCache]:
        return self.decoder.init_gaps(self.embed_tokens, encoded, tokens, max_gaps, source)

    def aux_step(self, tokens: jax.Array, cache: GapCache) -> tuple[jax.Array, GapCache]:
        return self.decoder.aux_step(self.embed_tokens, tokens, cache)

    def touch_parameters(self, source: jax.Array) -> jax.Array:
        """Uses every parameter, for `init`."""
        encoded = self.encode(source)
        # AR rows too, because NAR rows may skip the embedding layer norm.
        ar, _ = self.ar_step(source, self.init_cache(encoded, 1, source.shape[1], None, False))
        nar = self.project(self.nar_rows(encoded, source, None, None))
        total = nar.sum() + ar.sum() + encoded.length_logits.sum()
        if self.config.draft_heads:
            total += self.draft_rows(encoded, ar[:, 1:], source).sum()
        if self.config.ctc_ratio:
            total += self.source_rows("ctc", source, encoded, None, None)[0].sum()
        if self.config.dag_ratio:
            total += self.dag_links(*self.source_rows("dag", source, encoded, None, None)).sum()
        return total


def output_classes(config: ModelConfig) -> int:
    """The number of output classes: the vocabulary and, in a model with CTC rows, the blank after its last token."""
    return config.vocab_size + (config.ctc_ratio > 0)


def padded_vocab(config: ModelConfig) -> int:
    """V', the rows of the token table: `output_classes` rounded up to a multiple of config.vocab_multiple."""
    return _padded(output_classes(config), config)


def draft_vocab(config: ModelConfig) -> int:
    """Draft heads choose from the first so many rows of the token table, a multiple of config.vocab_multiple.

    The logits of all tokens would cost a head as much as some decoder layers. Drafting from the frequent tokens alone is from
    FR-Spec (Zhao et al. 2025, arXiv 2502.14856).
    """
    wanted = config.draft_vocab or max(config.vocab_size // 4, 1024)
    return min(_padded(wanted, config), padded_vocab(config))


def _padded(rows: int, config: ModelConfig) -> int:
    return -(-rows // config.vocab_multiple) * config.vocab_multiple


def project(rows: jax.Array, table: jax.Array, config: ModelConfig, dtype: Any, blank: bool = False) -> jax.Array:
    """Vocabulary logits [..., V'] float32 of hidden rows [..., D]; table [V', D].

    Columns of vocabulary padding hold -1e9. So does the column of the blank, unless `blank` is True. The value is -1e9
    and not -inf: the probability is exactly 0 all the same, and 0 * -1e9 is 0, where 0 * -inf would be NaN.
    """
    rows, table = rows.astype(dtype), table.astype(dtype)
    if jax.default_backend() == "cpu" and 1 < math.prod(rows.shape[:-1]) <= _FEW_ROWS:
        logits = _few_logits(rows, table)
    else:
        logits = jnp.einsum("...d,vd->...v", rows, table, preferred_element_type=jnp.float32)
    classes = config.vocab_size + blank
    if logits.shape[-1] != classes:
        logits = jnp.where(jnp.arange(logits.shape[-1]) < classes, logits, NEGATIVE)
    return logits


def _few_logits(rows: jax.Array, table: jax.Array) -> jax.Array:
    """The logits of a few rows, as a product of the table with them.

    On a CPU, XLA is slower with the table as the second operand: with the choice of the tokens 2.5 instead of 1.5 ms for
    five rows of width 512 and 10,112 tokens. The inner barrier keeps XLA from swapping the operands back. With the outer
    one there is a single transposed copy, which all that follows reads in order.
    """
    few = rows.reshape(-1, rows.shape[-1])
    if len(few) > _FEW_ROWS // 2:  # eight rows are faster than five to seven
        few = jnp.pad(few, ((0, _FEW_ROWS - len(few)), (0, 0)))
    columns = jnp.einsum("vd,nd->vn", table, few, preferred_element_type=jnp.float32)
    logits = lax.optimization_barrier(lax.optimization_barrier(columns).T)
    return logits[: math.prod(rows.shape[:-1])].reshape(*rows.shape[:-1], -1)


@dataclass(frozen=True)
class Janus:
    """One encoder-decoder with three ways to predict a target (docs/method.md, sections 1-3), CTC and DAG rows.

    Attributes:
      config: architecture; `vocab_size` must be set.
      specials: ids of the tokenizer's special tokens; with `config.mask_token="unk"`, `mask` becomes the id of unk.
    """

    config: ModelConfig
    specials: Specials

    def __post_init__(self) -> None:
        if self.config.mask_token == "unk":
            object.__setattr__(self, "specials", replace(self.specials, mask=self.specials.unk))
        if self.config.vocab_size <= max(self.specials.__dict__.values()):
            raise ConfigError(
                f"config.model.vocab_size: {self.config.vocab_size} does not hold the special tokens {self.specials}; "
                "set it to the tokenizer's size"
            )

    @property
    def dtype(self) -> Any:
        """The type of matrix products: config.dtype; "auto" means bfloat16 on accelerators and float32 on CPU."""
        name = self.config.dtype
        if name == "auto":
            name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return jnp.dtype(name)

    @property
    def blank(self) -> int:
        """The id of the CTC blank, the first after the vocabulary. Only models with CTC rows have a blank."""
        return self.config.vocab_size

    @property
    def _network(self) -> _Network:
        return _Network(self.config, self.specials, self.dtype)

    def bound(self, params: Params) -> Any:
        """The Linen module with parameters bound, to inspect it (tests, drawings)."""
        return self._network.bind({"params": params})

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters, float32."""
        return self._network.init(rng, jnp.full((1, 3), self.specials.unk), method=_Network.touch_parameters)["params"]

    def encode(self, params: Params, source: jax.Array, rng: jax.Array | None = None) -> Encoded:
        """Encodes source [B, S]; its padding may be on either side. With `rng`, dropout is on."""
        return self._apply(params, rng, _Network.encode, source)

    def train_rows(
        self,
        params: Params,
        encoded: Encoded,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        families: Collection[str] = ("ar", "nar", "aux"),
        encoded_parallel: Encoded | None = None,
        shown: Mapping[str, jax.Array] | None = None,
    ) -> dict[str, jax.Array]:
        """The joint pass: runs the rows of all `families` through the decoder layers together.

        Args:
          params: parameters.
          encoded: the encoding of batch.source.
          batch: one micro-batch.
          rng: random key of dropout; None: no dropout.
          families: names in `model.families.FAMILIES`; "aux" needs "nar". Rows of other families are never computed.
          encoded_parallel: the encoding that all rows except AR rows read; None: `encoded`. (The released code encodes
            twice, with independent dropout.)
          shown: family -> [B, R] int32 tokens that its rows read instead of their usual input; -1 keeps the usual
            input.

        Returns:
          The final hidden rows that a loss reads, by family: "ar" [B, U, D], where slot t predicts target[t+1]
          (with `ar_start="eos"`: target[t]); "nar" and "aux" [B, M, D], one for each masked token; "ctc" and "dag" [B, R, D].

        Raises:
          ValueError: `families` is empty or has an unknown name, "aux" comes without "nar", or "ctc" or
            "dag" comes with a model that has no such rows.
        """
        return self._apply(params, rng, _Network.train_rows, encoded, batch, families, encoded_parallel, shown)

    def project(self, params: Params, rows: jax.Array, blank: bool = False) -> jax.Array:
        """Vocabulary logits [..., V'] float32 of hidden rows [..., D].

        Columns from V on hold -1e9. With `blank`, column V holds the logit of the blank instead.
        """
        return project(rows, params["embed_tokens"]["embedding"], self.config, self.dtype, blank)

    def ar_rows(self, params: Params, encoded: Encoded, tokens: jax.Array) -> jax.Array:
        """Teacher forcing: hidden rows [N, L, D] of tokens [N, L]; row t predicts the token after tokens[:, :t+1]."""
        cache = self.init_cache(params, encoded, tokens.shape[0] // encoded.states.shape[0], tokens.shape[1])
        return self.ar_step(params, tokens, cache)[0]

    def source_rows(
        self,
        params: Params,
        family: str,
        source: jax.Array,
        encoded: Encoded,
        *,
        shown: jax.Array | None = None,
        projected: Source | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The rows of a family that needs no target.

        Args:
          params: parameters.
          family: a family of `model.families.FAMILIES` with rows of sources, for example "ctc" or "dag".
          source: [B, S] int32 tokens.
          encoded: their encoding.
          shown: [B, R] int32 tokens that rows read instead of their usual input; -1 keeps the usual input.
          projected: `project_source(encoded)`, if it has been computed.

        Returns:
          Hidden rows [B, R, D], and which of them are real [B, R]: as many as the sentence's own length asks for.

        Raises:
          ValueError: the model has no such rows, or the family's rows need a target.
        """
        return self._apply(params, None, _Network.source_rows, family, source, encoded, shown, projected)

    def dag_links(self, params: Params, rows: jax.Array, real: jax.Array) -> jax.Array:
        """Log-probabilities [B, R, R] float32 of the links between DAG rows, from axis 1 to axis 2; -1e9: no link.

        Args:
          params: parameters.
          rows: [B, R, D] hidden DAG rows.
          real: [B, R] bool, True at the real ones.
        """
        return self._apply(params, None, _Network.dag_links, rows, real)

    def project_source(self, params: Params, encoded: Encoded) -> Source:
        """Cross-attention keys and values of the encoder states, for every layer. Several passes can share them."""
        return self._apply(params, None, _Network.project_source, encoded)

    def nar_rows(
        self,
        params: Params,
        encoded: Encoded,
        tokens: jax.Array,
        slots: jax.Array | None = None,
        source: Source | None = None,
    ) -> jax.Array:
        """Bidirectional rows [N, T, D]; row t predicts token t where tokens [N, T] holds a mask.

        Args:
          params, encoded: the parameters, and the encoding of B sentences.
          tokens: N is B or a multiple of B; the candidates of one sentence are adjacent.
          slots: [N, M] int32, indices of the rows to return, as [N, M, D]; None: all rows.
          source: `project_source(encoded)`, if already computed.
        """
        return self._apply(params, None, _Network.nar_rows, encoded, tokens, slots, source)

    def init_cache(
        self,
        params: Params,
        encoded: Encoded,
        per_sentence: int,
        max_length: int,
        source: Source | None = None,
        reordered: bool = False,
    ) -> Cache:
        """An empty cache.

        Args:
          params, encoded: the parameters, and the encoding of B sentences.
          per_sentence: hypotheses of a sentence; those of one sentence are adjacent.
          max_length: most input tokens of a hypothesis.
          source: `project_source(encoded)`, if already computed.
          reordered: `reorder_cache` will be used; it is then cheap.
        """
        return self._apply(params, None, _Network.init_cache, encoded, per_sentence, max_length, source, reordered)

    def rewind_cache(self, cache: Any, length: jax.Array) -> Any:
        """Shortens a `Cache` or `GapCache` to its first `length` ([N] or []) input tokens. Later steps overwrite the rest."""
        return replace(cache, length=length)

    def ar_step(self, params: Params, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden rows [N, k, D] and the extended cache; row j predicts the token after tokens[:, j], tokens [N, k]."""
        return self._apply(params, None, _Network.ar_step, tokens, cache)

    def draft_rows(self, params: Params, encoded: Encoded, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        """The rows of the draft heads where the tokens are known, for their loss.

        Args:
          params: parameters.
          encoded: the sources.
          rows: [B, U-1, D] AR rows, which predict the tokens behind the first.
          tokens: [B, U] int32, bos first.

        Returns:
          [B, U, k, D]: of slot t and head d, the row that predicts token t+d of `tokens`.
        """
        return self._apply(params, None, _Network.draft_rows, encoded, rows, tokens)

    def draft_start(self, params: Params, sentences: int) -> jax.Array:
        """What the first draft head reads in place of an AR row before the first token, [B, D]."""
        return self._apply(params, None, _Network.draft_start, sentences)

    def draft_step(self, params: Params, encoded: Encoded, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        """The rows [B, D] of the next draft head, which predict the tokens behind `tokens`.

        Args:
          params: parameters.
          encoded: the sources.
          rows: [B, D], of the head before it; for the first head the AR rows that predict `tokens`, or `draft_start`.
          tokens: [B] int32.
        """
        return self._apply(params, None, _Network.draft_step, encoded, rows, tokens)

    def init_gaps(
        self, params: Params, encoded: Encoded, tokens: jax.Array, max_gaps: int, source: Source | None = None
    ) -> tuple[jax.Array, GapCache]:
        """Starts to fill the masks of targets from left to right with AUX rows: p(gap tokens | source, visible tokens).

        Args:
          params, encoded: the parameters, and the encoding of B sentences.
          tokens: [B, T] bos ... eos with masks, padded.
          max_gaps: M, at least the number of masks of every target, and at most T.
          source: `project_source(encoded)`, if already computed.

        Returns:
          The NAR rows of the masks [B, M, D], equal to those of `nar_rows`, and the cache for `aux_step`.
        """
        return self._apply(params, None, _Network.init_gaps, encoded, tokens, max_gaps, source)

    def aux_step(self, params: Params, tokens: jax.Array, cache: GapCache) -> tuple[jax.Array, GapCache]:
        """AUX rows [B, k, D] and the extended cache; row j predicts the gap token after tokens[:, j], tokens [B, k].

        The first token of the first call can be any token, for example bos: no row attends to it. Its query row
        predicts the first gap token.
        """
        return self._apply(params, None, _Network.aux_step, tokens, cache)

    def reorder_cache(self, cache: Cache, rows: jax.Array) -> Cache:
        """Row i of the result is row rows[i] of `cache`; rows [N] int32. Rows i and rows[i] must be of one sentence.

        If the hypotheses of a sentence do not share their keys and values, all of these are copied.
        """
        length = cache.length[rows] if cache.length.ndim else cache.length
        if cache.ancestors is not None:
            return replace(cache, length=length, ancestors=cache.ancestors[rows])
        copied = {name: tuple(x[rows] for x in getattr(cache, name)) for name in ("keys", "values")}
        return replace(cache, length=length, **copied)

    def _apply(self, params: Params, rng: jax.Array | None, method: Callable[..., Any], *args: Any) -> Any:
        rngs = None if rng is None else {"dropout": rng}
        return self._network.apply({"params": params}, *args, rngs=rngs, method=method)


def constrain_logits(logits: jax.Array) -> jax.Array:
    """Pins the sharding of logits [R, V']: rows over the batch axes, the vocabulary over the mesh axis `tensor`."""
    return constrain(logits, BATCH, "tensor")
