"""The decoder: one set of layers for every kind of row.

Legend: B sentences, N hypotheses of all sentences (a multiple of B), R query rows, S source length or key rows, T
target length, U AR slots, M masked tokens at most, R' rows of a source, L cache length, k new tokens, D model width, H heads,
K head width, C length classes.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from janus_jax.config import ModelConfig
from janus_jax.model.attention import NEGATIVE
from janus_jax.model.decoder_layer import DecoderLayer, Source, kept, read
from janus_jax.model.encoder import RESERVED_POSITIONS, Embedder, position_table, remat_layer
from janus_jax.model.families import ar, aux, mask_predict, row_layout, show, source_group
from janus_jax.model.layers import Table, dense, layer_norm
from janus_jax.model.layout import RowGroup
from janus_jax.parallel import BATCH, constrain, row_major
from janus_jax.types import Batch, Encoded, Specials

# Hypotheses of a sentence that share a cache. Each attends to the rows of all, which costs more the more they are; so many are
# still cheaper than copies of the cache.
_MOST_SHARED = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The state of AR decoding between steps. To reject drafted tokens, lower `length`; nothing else changes.

    Either each hypothesis has keys and values of its own (G = N). Or the n hypotheses of a sentence share theirs, because they
    are continued from one another (G = B). Then `ancestors` says which of the n wrote the row of a slot, and a new order of the
    hypotheses changes `ancestors` alone.
    """

    # Per layer [G, H, K, L * N/G] and [G, H, L * N/G, K]: projected AR content rows; the hypotheses of a slot are adjacent.
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    source: Source
    # Content rows already in the cache, int32: [N], or [] if all hypotheses have as many. Writing a row is then much faster.
    length: jax.Array
    ancestors: jax.Array | None  # [N, L] int32, below N/G


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GapCache:
    """The state of gap filling by AUX rows between steps: the NAR rows, which never change, and the gold rows so far.

    Slot 0 of the gold rows holds no gold token, and no row attends to it. It is like bos in AR: its query row predicts
    the first gap token.
    """

    keys: tuple[jax.Array, ...]  # per layer [N, H, K, T + M + 1], projected NAR rows, then gold rows
    values: tuple[jax.Array, ...]  # per layer [N, H, T + M + 1, K]
    source: Source
    real: jax.Array  # [N, T] bool, target tokens
    masked: jax.Array  # [N, M] int32, positions of the gaps, ascending; 0 from index masked_count on
    masked_count: jax.Array  # [N] int32
    length: jax.Array  # [N] int32, gold rows already in the cache, slot 0 counted


def _written(old: jax.Array, new: jax.Array, length: jax.Array, slots: jax.Array) -> jax.Array:
    """old [N, L] with new [N, k] at slots [N, k], which begin at `length` ([N] or [])."""
    if length.ndim:
        return old.at[jnp.arange(old.shape[0])[:, None], slots].set(new)
    return jax.lax.dynamic_update_slice_in_dim(old, new, length, axis=1)


class DagLinks(nn.Module):
    """The links of DAG rows: for each vertex a distribution over the vertices behind it.

    A link is drawn from a mixture of H softmaxes. Queries, keys and the weights of the mixture are linear in the hidden
    row and a learned position of the vertex (DA-Transformer, Huang et al. 2022, arXiv 2205.07459).
    """

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.embed_positions = position_table(self.config)
        self.q_proj = dense(self.config.d_model, self.dtype)
        self.k_proj = dense(self.config.d_model, self.dtype)
        self.gate = dense(self.config.heads, self.dtype)

    def __call__(self, rows: jax.Array, real: jax.Array) -> jax.Array:
        """Log-probabilities [B, R', R'] float32 of the links from each vertex (axis 1) to each (axis 2).

        Links that do not exist hold NEGATIVE: backward ones, and those from or to padding. The last real vertex has no
        successor.

        Args:
          rows: [B, R', D] hidden rows.
          real: [B, R'] bool, True at real vertices, which come first.
        """
        count, width = rows.shape[1], self.config.d_model // self.config.heads
        positions = self.embed_positions(jnp.arange(count) + RESERVED_POSITIONS).astype(self.dtype)
        inputs = jnp.concatenate([rows.astype(self.dtype), jnp.broadcast_to(positions, rows.shape)], axis=-1)
        queries, keys = (
            part.reshape(*rows.shape[:2], self.config.heads, width)
            for part in (self.q_proj(inputs), self.k_proj(inputs))
        )
        scores = jnp.einsum("brhk,bshk->bhrs", queries, keys, preferred_element_type=jnp.float32) / math.sqrt(width)
        exists = jnp.triu(jnp.ones((count, count), bool), 1) & real[:, :, None] & real[:, None]
        heads = jax.nn.log_softmax(jnp.where(exists[:, None], scores, NEGATIVE), axis=-1)
        weights = jax.nn.log_softmax(self.gate(inputs).astype(jnp.float32), axis=-1)
        mixed = jax.nn.logsumexp(jnp.moveaxis(weights, 2, 1)[..., None] + heads, axis=1)
        return constrain(jnp.where(exists, mixed, NEGATIVE), BATCH)


class Decoder(Embedder):
    """All decoder passes: joint training rows, teacher forcing, bidirectional rows, cached steps."""

    specials: Specials = Specials()

    def setup(self) -> None:
        c = self.config
        self.setup_embedding()
        layer = remat_layer(DecoderLayer, c, "joint")
        self.layers = [layer(c, self.dtype) for _ in range(c.decoder_layers)]
        if c.norm == "pre":
            self.layer_norm = layer_norm(self.dtype)
        self.embed_ctc_positions = position_table(c) if c.ctc_ratio and c.ctc_positions == "own" else None
        self.embed_dag_positions = position_table(c) if c.dag_ratio else None
        self.dag_links = DagLinks(c, self.dtype) if c.dag_ratio else None
        self.embed_length = Table(c.length_classes, c.d_model, used=c.length_classes)

    def length_logits(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits [B, C] float32 of the target length: mean encoder state of the real tokens, times the table.

        Args:
          states: [B, S, D].
          mask: [B, S] bool, True at real tokens.
        """
        weights = mask[:, :, None].astype(jnp.float32)
        mean = (states.astype(jnp.float32) * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
        return mean @ self.embed_length.gathered().T

    def train_rows(
        self,
        table: Table,
        encoded: Encoded,
        batch: Batch,
        families: Collection[str],
        encoded_parallel: Encoded | None,
        shown: Mapping[str, jax.Array] | None,
    ) -> dict[str, jax.Array]:
        """The joint pass; see `Janus.train_rows`."""
        layout = row_layout(batch, self.config, self.specials, families, shown)
        states = {name: encoded if name == "ar" or encoded_parallel is None else encoded_parallel for name in families}
        blocks, source_blocks = layout.attention(), layout.source_attention(states)
        x = self.embed_groups(table, layout.groups, batch.target.shape[0], states)
        for layer in self.layers[:-1]:
            x = layer.joint(x, layout.memory(x), blocks, source_blocks, layout.parallel())
        # In the last layer, only rows that a loss reads are queries.
        blocks, source_blocks = layout.attention(last=True), layout.source_attention(states, last=True)
        x = self.layers[-1].joint(layout.read(x), layout.memory(x), blocks, source_blocks, layout.parallel(last=True))
        return layout.split(self._finish(x))

    def embed_groups(
        self,
        table: Table,
        groups: tuple[RowGroup, ...],
        sentences: int,
        encoded: Mapping[str, Encoded] | None = None,
    ) -> jax.Array:
        """Embeds the rows of all groups and concatenates them: [B, R, D], where B is `sentences`.

        Args:
          table: of the tokens.
          groups: the rows.
          sentences: B.
          encoded: the encoding of each family whose rows read encoder states.
        """
        # One look-up for all groups: on a mesh, devices exchange one gradient, as large as the table, per look-up.
        tokens = [group.tokens for group in groups if group.tokens is not None]
        ends = np.cumsum([part.shape[1] for part in tokens])[:-1]
        vectors = iter(jnp.split(table(jnp.concatenate(tokens, axis=1)), ends, axis=1) if tokens else ())
        mask_vector = table(jnp.array(self.specials.mask))
        position_tables = {"": None, "ctc": self.embed_ctc_positions, "dag": self.embed_dag_positions}
        rows = []
        for group in groups:
            if group.tokens is None:
                inputs = jnp.broadcast_to(mask_vector, (sentences, group.rows, self.config.d_model))
            else:
                inputs = next(vectors)
            states = None
            if group.copies is not None:
                states = jnp.take_along_axis(encoded[group.family].states, group.copies[:, :, None], axis=1)
            own_table = position_tables[group.position_table]
            rows.append(self.embed(inputs, group.positions, group.layernorm, states, own_table))
        return constrain(jnp.concatenate(rows, axis=1), BATCH)

    def _finish(self, x: jax.Array) -> jax.Array:
        return self.layer_norm(x) if self.config.norm == "pre" else x

    def project_source(self, encoded: Encoded) -> Source:
        """Cross-attention keys and values of the encoder states, for every layer."""
        crosses = [layer.cross_keys_values(encoded.states) for layer in self.layers]
        keys, values = zip(*(kept(k, v) for k, v in crosses), strict=True)
        return Source(keys, values, encoded.mask)

    def nar_rows(
        self, table: Table, encoded: Encoded, tokens: jax.Array, slots: jax.Array | None, source: Source | None
    ) -> jax.Array:
        """Bidirectional rows of tokens [N, T]; see `Janus.nar_rows`."""
        group = mask_predict.target_rows(tokens, self.config, self.specials, slots)
        return self._bidirectional(table, group, source or self.project_source(encoded))[0]

    def source_rows(
        self,
        table: Table,
        family: str,
        tokens: jax.Array,
        encoded: Encoded,
        shown: jax.Array | None,
        source: Source | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Rows [B, R', D] of sources `tokens` [B, S], and which are real; see `Janus.source_rows`."""
        group = source_group(family, tokens, self.config, self.specials)
        if shown is not None:
            group = show(group, shown, self.specials)
        rows, _ = self._bidirectional(table, group, source or self.project_source(encoded), encoded)
        return rows, group.attends[group.name][:, 0]

    def _bidirectional(
        self, table: Table, group: RowGroup, source: Source, encoded: Encoded | None = None
    ) -> tuple[jax.Array, list]:
        """Runs one group of rows that attend to each other through the layers; `encoded`: for rows that read its states.

        Returns:
          The rows that are read [N, M, D], and for each layer the keys and values of all rows.
        """
        mask = group.attends[group.name]
        x = self.embed_groups(table, (group,), mask.shape[0], {group.family: encoded} if encoded else None)
        keys_values = []
        for i, layer in enumerate(self.layers):
            keys_values.append(layer.self_keys_values(x, 0))
            if i == len(self.layers) - 1 and group.read is not None:
                x = jnp.take_along_axis(x, group.read[:, :, None], axis=1)
            rows = x.shape[1]
            x = constrain(layer.forward(x, [(0, rows, *keys_values[i], mask)], [(0, rows, *source.of(i))], 0), BATCH)
        return self._finish(x), keys_values

    def init_cache(
        self, encoded: Encoded, per_sentence: int, max_length: int, source: Source | None, reordered: bool
    ) -> Cache:
        """An empty cache; see `Janus.init_cache`."""
        c = self.config
        sentences, width = encoded.states.shape[0], c.d_model // c.heads
        shared = per_sentence if reordered and per_sentence <= _MOST_SHARED else 1
        groups, slots = sentences * per_sentence // shared, max_length * shared

        def zeros(*shape: int) -> jax.Array:
            return row_major(constrain(jnp.zeros((groups, c.heads, *shape), self.dtype), BATCH))

        return Cache(
            keys=tuple(zeros(width, slots) for _ in self.layers),
            values=tuple(zeros(slots, width) for _ in self.layers),
            source=source or self.project_source(encoded),
            length=jnp.int32(0),
            ancestors=jnp.zeros((sentences * per_sentence, max_length), jnp.int32) if shared > 1 else None,
        )

    def ar_step(self, table: Table, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden rows [N, k, D] and the extended cache; row j predicts the token after tokens[:, j], tokens [N, k]."""
        c = self.config
        new = tokens.shape[1]
        slots = jnp.broadcast_to(cache.length, tokens.shape[:1])[:, None] + jnp.arange(new)
        positions = ar.slot_positions(slots, c)
        x = self.embed(table(tokens), positions)
        queries = 0
        if c.ar_stream == "query":
            vectors = jnp.broadcast_to(table(jnp.array(self.specials.mask)), x.shape)
            x = jnp.concatenate([self.embed(vectors, positions), x], axis=1)
            queries = new
        shared = tokens.shape[0] // cache.keys[0].shape[0]
        number = jnp.arange(tokens.shape[0]) % shared  # of a hypothesis in its sentence
        mask = jnp.arange(cache.keys[0].shape[3] // shared) <= slots[:, :, None]
        if cache.ancestors is not None:
            own = jnp.broadcast_to(number[:, None], tokens.shape)
            cache = replace(cache, ancestors=_written(cache.ancestors, own, cache.length, slots))
            mask = mask[..., None] & (cache.ancestors[:, None, :, None] == jnp.arange(shared))
        mask = jnp.tile(mask.reshape(*slots.shape, -1), (1, x.shape[1] // new, 1))
        return self._extend(x, queries, slots * shared + number[:, None], mask, cache, parallel=None)

    def _extend(
        self, x: jax.Array, queries: int, slots: jax.Array, mask: jax.Array, cache: Any, parallel: int | None
    ) -> tuple[jax.Array, Any]:
        """Runs rows through all layers. They attend to the cache, to which each layer first adds the k content rows.

        Args:
          x: [N, R, D] embedded rows: first the query rows, then the k content rows.
          queries: the number of query rows: k, or 0 if the content rows predict.
          slots: [N, k] indices in the arrays of the cache for the content rows.
          mask: [N, R, S] attention mask over these arrays, in which the new content rows are already.
          cache: `Cache` or `GapCache`.
          parallel: the first row that uses the adapters: 0 for AUX rows, None for AR rows.

        Returns:
          The rows that predict [N, k, D], and the extended cache.
        """
        new, groups = slots.shape[1], cache.keys[0].shape[0]
        shared = x.shape[0] // groups

        def put(keys: jax.Array, values: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            if cache.length.ndim:
                group = jnp.arange(x.shape[0])[:, None] // shared
                return keys.at[group, :, :, slots].set(k), values.at[group, :, slots].set(v)
            k, v = (y.reshape(groups, shared, new, *y.shape[2:]).swapaxes(1, 2) for y in (k, v))
            k, v = kept(*(y.reshape(groups, new * shared, *y.shape[3:]) for y in (k, v)))
            first = cache.length * shared
            return (
                row_major(jax.lax.dynamic_update_slice_in_dim(keys, k, first, axis=3)),
                row_major(jax.lax.dynamic_update_slice_in_dim(values, v, first, axis=2)),
            )

        all_keys, all_values = [], []
        for i, layer in enumerate(self.layers):
            k, v = put(cache.keys[i], cache.values[i], *layer.self_keys_values(x[:, queries:], parallel))
            all_keys.append(k)
            all_values.append(v)
            if i == len(self.layers) - 1:
                # Only the first k rows predict. If they are query rows, content rows just gave their keys and values.
                x, mask = x[:, :new], mask[:, :new]
            n = x.shape[1]
            attention = [(0, n, *read(k, v), mask.reshape(groups, shared * n, -1))]
            x = constrain(layer.forward(x, attention, [(0, n, *cache.source.of(i))], parallel), BATCH)
        extended = replace(cache, keys=tuple(all_keys), values=tuple(all_values), length=cache.length + new)
        return self._finish(x), extended

    def init_gaps(
        self, table: Table, encoded: Encoded, tokens: jax.Array, max_gaps: int, source: Source | None
    ) -> tuple[jax.Array, GapCache]:
        """The NAR rows of targets with gaps; see `Janus.init_gaps`."""
        source = source or self.project_source(encoded)
        is_masked = tokens == self.specials.mask
        masked = jnp.argsort(~is_masked, axis=1, stable=True)[:, :max_gaps].astype(jnp.int32)
        count = is_masked.sum(axis=1).astype(jnp.int32)
        masked = jnp.where(jnp.arange(max_gaps) < count[:, None], masked, 0)
        group = mask_predict.target_rows(tokens, self.config, self.specials, masked)
        hidden, keys_values = self._bidirectional(table, group, source)
        padding = ((0, 0), (0, max_gaps + 1), (0, 0), (0, 0))
        keys, values = zip(*(kept(jnp.pad(k, padding), jnp.pad(v, padding)) for k, v in keys_values), strict=True)
        cache = GapCache(
            keys=keys,
            values=values,
            source=source,
            real=tokens != self.specials.pad,
            masked=masked,
            masked_count=count,
            length=jnp.zeros(tokens.shape[0], jnp.int32),
        )
        return hidden, cache

    def aux_step(self, table: Table, tokens: jax.Array, cache: GapCache) -> tuple[jax.Array, GapCache]:
        """AUX rows [N, k, D] and the extended cache; row j predicts the gap token after tokens[:, j], tokens [N, k]."""
        # Slot t holds the gold row of rank t - 1. The query row that belongs to it has rank t.
        slots = cache.length[:, None] + jnp.arange(tokens.shape[1])
        last = cache.masked.shape[1] - 1

        def position(rank: jax.Array) -> jax.Array:
            return jnp.take_along_axis(cache.masked, jnp.clip(rank, 0, last), axis=1)

        normalise = self.config.nar_layernorm_embedding
        vectors = jnp.broadcast_to(table(jnp.array(self.specials.mask)), (*tokens.shape, self.config.d_model))
        x = jnp.concatenate(
            [
                self.embed(vectors, position(slots), normalise),
                self.embed(table(tokens), position(slots - 1), normalise),
            ],
            axis=1,
        )
        mask = aux.gap_mask(cache.real, cache.masked, cache.masked_count, position(slots), position(slots - 1), slots)
        return self._extend(x, tokens.shape[1], cache.real.shape[1] + slots, mask, cache, parallel=0)
