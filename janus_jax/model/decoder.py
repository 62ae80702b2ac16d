"""The decoder: one set of layers for every kind of row.

Legend: B sentences, N rows of a search (a multiple of B), R query rows, S source length or key rows, T target length,
U AR slots, M masked tokens at most, R' CTC rows, L cache length, k new tokens, D model width, H heads, K head width.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.model import streams as st
from janus_jax.model.decoder_layer import Cross, DecoderLayer, Source
from janus_jax.model.encoder import Embedder, remat_layer
from janus_jax.model.layers import Table, layer_norm
from janus_jax.parallel import BATCH, constrain
from janus_jax.types import Batch, Encoded, Specials, Streams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What AR decoding keeps between steps. A rejected draft only lowers `length`."""

    keys: tuple[jax.Array, ...]  # per layer [N, L, H, K], projected content rows
    values: tuple[jax.Array, ...]
    source: Source
    length: jax.Array  # [N] int32, content rows already in the cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GapCache:
    """What filling gaps by AUX rows keeps between steps: the NAR rows, which never change, and the true rows so far.

    Slot 0 of the true rows belongs to no token and is seen by none: as bos does in AR, it asks for the first token.
    """

    keys: tuple[jax.Array, ...]  # per layer [N, T + M + 1, H, K], projected NAR rows, then true rows
    values: tuple[jax.Array, ...]
    source: Source
    real: jax.Array  # [N, T] bool, target tokens
    masked: jax.Array  # [N, M] int32, positions of the gaps, ascending; 0 past a row's count
    masked_count: jax.Array  # [N] int32
    length: jax.Array  # [N] int32, true rows already in the cache, slot 0 counted


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
        self.embed_length = Table(c.length_classes, c.d_model, used=c.length_classes)

    def length_logits(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, C] float32: mean of the encoder states over real source tokens times the length table."""
        weights = mask[:, :, None].astype(jnp.float32)
        mean = (states.astype(jnp.float32) * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
        return mean @ self.embed_length.gathered().T

    def joint(
        self,
        table: Table,
        encoded: Encoded,
        batch: Batch,
        streams: tuple[str, ...],
        encoded_nar: Encoded | None,
        glanced: jax.Array | None,
    ) -> Streams:
        """The joint pass; see `Janus.train_streams`."""
        c, target = self.config, batch.target
        real = target != self.specials.pad
        ar_query = c.ar_stream == "query"
        inputs = st.ar_inputs(target, c, self.specials)
        slots, masked = inputs.shape[1], batch.masked.shape[1]
        x = self.joint_rows(table, inputs, batch, streams, encoded.mask, glanced)
        of_ctc = st.ctc_real(encoded.mask, c) if "ctc" in streams else None
        sights = st.joint_sights(batch, real, slots, streams, ar_query, of_ctc)
        ctc_rows = 0 if of_ctc is None else of_ctc.shape[1]
        content_start = slots if "ar" in streams and ar_query else 0
        content_stop = x.shape[1] - (masked if "aux" in streams else 0)
        ar_rows = (slots * (2 if ar_query else 1)) if "ar" in streams else 0

        def crosses(ar_rows: int, rows: int) -> tuple:
            if encoded_nar is None:
                return (Cross(0, rows, encoded),)
            parts = (Cross(0, ar_rows, encoded), Cross(ar_rows, rows, encoded_nar))
            return tuple(part for part in parts if part.stop > part.start)

        for layer in self.layers[:-1]:
            x = layer.joint(x, x[:, content_start:content_stop], sights, crosses(ar_rows, x.shape[1]))
        # Last layer: query rows are only those that a loss can read.
        parts = {}
        if "ar" in streams:
            parts["ar"] = x[:, :slots]
        if "ctc" in streams:
            parts["ctc"] = x[:, ar_rows : ar_rows + ctc_rows]
        if "nar" in streams:
            nar = x[:, ar_rows + ctc_rows :][:, : target.shape[1]]
            parts["nar"] = jnp.take_along_axis(nar, batch.masked[:, :, None], axis=1)
        if "aux" in streams:
            parts["aux"] = x[:, -masked:]
        queries = jnp.concatenate(list(parts.values()), axis=1)
        sights = st.last_sights(sights, slots, masked, streams)
        memory = x[:, content_start:content_stop]
        x = self.layers[-1].joint(queries, memory, sights, crosses(slots if "ar" in streams else 0, queries.shape[1]))
        ends = np.cumsum([part.shape[1] for part in parts.values()])[:-1]
        found = dict(zip(parts, jnp.split(self._finish(x), ends, axis=1), strict=True))
        return Streams(**{name: found.get(name) for name in ("ar", "nar", "aux", "ctc")})

    def joint_rows(
        self,
        table: Table,
        inputs: jax.Array,
        batch: Batch,
        streams: tuple[str, ...],
        real_source: jax.Array | None = None,
        glanced: jax.Array | None = None,
    ) -> jax.Array:
        """Embedded rows [AR query | AR content | CTC | NAR | true | AUX] of the streams asked for, [B, R, D]."""
        c, target = self.config, batch.target
        mask_vector = table(jnp.array(self.specials.mask))
        rows = []
        # One look-up for all: on a mesh, the gradient of each would travel for itself, as large as the table.
        tokens = {"ar": inputs} if "ar" in streams else {}
        if "nar" in streams:
            tokens["nar"] = st.nar_tokens(batch, self.specials)
        if "aux" in streams:
            tokens["aux"] = jnp.take_along_axis(target, batch.masked, axis=1)
        ends = np.cumsum([part.shape[1] for part in tokens.values()])[:-1]
        found = jnp.split(table(jnp.concatenate(list(tokens.values()), axis=1)), ends, axis=1) if tokens else []
        vectors = dict(zip(tokens, found, strict=True))
        if "ar" in streams:
            positions = st.ar_slot_positions(jnp.arange(inputs.shape[1]), c)
            if c.ar_stream == "query":
                rows.append(self.embed(jnp.broadcast_to(mask_vector, vectors["ar"].shape), positions))
            rows.append(self.embed(vectors["ar"], positions))
        if "ctc" in streams:
            rows.append(self._ctc_inputs(table, batch.source, real_source, glanced))
        if "nar" in streams:
            normalise = c.nar_layernorm_embedding
            rows.append(self.embed(vectors["nar"], jnp.arange(target.shape[1]), normalise))
            if "aux" in streams:
                true = vectors["aux"]
                rows.append(self.embed(true, batch.masked, normalise))
                rows.append(self.embed(jnp.broadcast_to(mask_vector, true.shape), batch.masked, normalise))
        return constrain(jnp.concatenate(rows, axis=1), BATCH)

    def _finish(self, x: jax.Array) -> jax.Array:
        return self.layer_norm(x) if self.config.norm == "pre" else x

    def project_source(self, encoded: Encoded) -> Source:
        """Every layer's projection of the encoder states."""
        crosses = [layer.cross(encoded.states) for layer in self.layers]
        return Source(tuple(k for k, _ in crosses), tuple(v for _, v in crosses), encoded.mask)

    def nar_rows(
        self, table: Table, encoded: Encoded, tokens: jax.Array, slots: jax.Array | None, source: Source | None
    ) -> jax.Array:
        """Bidirectional rows of tokens [N, T]; see `Janus.nar_rows`."""
        return self._nar_pass(table, tokens, slots, source or self.project_source(encoded))[0]

    def ctc_rows(
        self, table: Table, tokens: jax.Array, encoded: Encoded, glanced: jax.Array | None, source: Source | None
    ) -> tuple[jax.Array, jax.Array]:
        """CTC rows [B, R', D] of sources `tokens` [B, S], and which are real; see `Janus.ctc_rows`."""
        real = st.ctc_real(encoded.mask, self.config)
        x = self._ctc_inputs(table, tokens, encoded.mask, glanced)
        return self._bidirectional(x, real, None, source or self.project_source(encoded))[0], real

    def _ctc_inputs(self, table: Table, tokens: jax.Array, real: jax.Array, glanced: jax.Array | None) -> jax.Array:
        """Embedded CTC rows [B, R', D]; a row whose `glanced` [B, R'] is a token and not -1 reads that."""
        origins = st.ctc_origins(real, self.config)
        if self.config.ctc_input == "source":
            read = jnp.take_along_axis(tokens, origins, axis=1)
        else:
            read = jnp.full_like(origins, self.specials.mask)
        if glanced is not None:
            read = jnp.where(glanced >= 0, glanced, read)
        return self.embed(table(read), jnp.arange(read.shape[1]))

    def _nar_pass(self, table: Table, tokens: jax.Array, slots: jax.Array | None, source: Source) -> tuple:
        """Rows of the wanted slots, and every layer's keys and values of all rows."""
        x = self.embed(table(tokens), jnp.arange(tokens.shape[1]), self.config.nar_layernorm_embedding)
        return self._bidirectional(x, tokens != self.specials.pad, slots, source)

    def _bidirectional(self, x: jax.Array, real: jax.Array, slots: jax.Array | None, source: Source) -> tuple:
        """Rows x [N, R, D] that see all `real` [N, R] ones through the layers; of the last, those of `slots` [N, M]."""
        mask = st.nar_mask(real)
        contents = []
        for i, layer in enumerate(self.layers):
            contents.append(layer.content(x))
            if i == len(self.layers) - 1 and slots is not None:
                x = jnp.take_along_axis(x, slots[:, :, None], axis=1)
            rows = x.shape[1]
            x = constrain(layer.advance(x, [(0, rows, *contents[i], mask)], [(0, rows, *source.of(i))]), BATCH)
        return self._finish(x), contents

    def init_cache(self, encoded: Encoded, rows_per_sentence: int, max_length: int, source: Source | None) -> Cache:
        """An empty cache; see `Janus.init_cache`."""
        c = self.config
        rows = encoded.states.shape[0] * rows_per_sentence
        shape = (rows, max_length, c.heads, c.d_model // c.heads)
        return Cache(
            keys=tuple(constrain(jnp.zeros(shape, self.dtype), BATCH) for _ in self.layers),
            values=tuple(constrain(jnp.zeros(shape, self.dtype), BATCH) for _ in self.layers),
            source=source or self.project_source(encoded),
            length=jnp.zeros((rows,), jnp.int32),
        )

    def ar_step(self, table: Table, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden rows [N, k, D] that predict the successors of tokens [N, k], and the longer cache."""
        c = self.config
        new = tokens.shape[1]
        slots = cache.length[:, None] + jnp.arange(new)
        positions = st.ar_slot_positions(slots, c)
        x = self.embed(table(tokens), positions)
        queries = 0
        if c.ar_stream == "query":
            vectors = jnp.broadcast_to(table(jnp.array(self.specials.mask)), x.shape)
            x = jnp.concatenate([self.embed(vectors, positions), x], axis=1)
            queries = new
        mask = jnp.arange(cache.keys[0].shape[1]) <= slots[:, :, None]
        return self._extend(x, queries, slots, jnp.tile(mask, (1, x.shape[1] // new, 1)), cache)

    def _extend(
        self, x: jax.Array, queries: int, places: jax.Array, mask: jax.Array, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Rows through all layers, over the cache and themselves.

        Args:
          x: [N, R, D] embedded rows, `queries` query rows and then k content rows.
          queries: k, or 0 where content rows predict.
          places: [N, k] where in the cache the content rows go.
          mask: [N, R, S] what each row sees of the cache, the new content rows included.
          cache: `Cache` or `GapCache`.

        Returns:
          [N, k, D] the rows that predict, and the longer cache.
        """
        rows, new = jnp.arange(x.shape[0])[:, None], places.shape[1]
        all_keys, all_values = [], []
        for i, layer in enumerate(self.layers):
            k, v = layer.content(x[:, queries:])
            all_keys.append(cache.keys[i].at[rows, places].set(k))
            all_values.append(cache.values[i].at[rows, places].set(v))
            if i == len(self.layers) - 1:
                # Behind query rows, content rows are done: only their keys and values were needed.
                x, mask = x[:, :new], mask[:, :new]
            n = x.shape[1]
            attention = [(0, n, all_keys[i], all_values[i], mask)]
            x = constrain(layer.advance(x, attention, [(0, n, *cache.source.of(i))]), BATCH)
        longer = replace(cache, keys=tuple(all_keys), values=tuple(all_values), length=cache.length + new)
        return self._finish(x), longer

    def init_gaps(
        self, table: Table, encoded: Encoded, tokens: jax.Array, most: int, source: Source | None
    ) -> tuple[jax.Array, GapCache]:
        """The NAR rows of targets with gaps; see `Janus.init_gaps`."""
        source = source or self.project_source(encoded)
        is_masked = tokens == self.specials.mask
        masked = jnp.argsort(~is_masked, axis=1, stable=True)[:, :most].astype(jnp.int32)
        count = is_masked.sum(axis=1).astype(jnp.int32)
        masked = jnp.where(jnp.arange(most) < count[:, None], masked, 0)
        hidden, contents = self._nar_pass(table, tokens, masked, source)
        room = ((0, 0), (0, most + 1), (0, 0), (0, 0))
        cache = GapCache(
            keys=tuple(jnp.pad(k, room) for k, _ in contents),
            values=tuple(jnp.pad(v, room) for _, v in contents),
            source=source,
            real=tokens != self.specials.pad,
            masked=masked,
            masked_count=count,
            length=jnp.zeros(tokens.shape[0], jnp.int32),
        )
        return hidden, cache

    def aux_step(self, table: Table, tokens: jax.Array, cache: GapCache) -> tuple[jax.Array, GapCache]:
        """Hidden rows [N, k, D] that predict what follows tokens [N, k] in the gaps, and the longer cache."""
        slots = cache.length[:, None] + jnp.arange(
            tokens.shape[1]
        )  # slot t: the true row of rank t - 1, the query of rank t
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
        mask = st.gap_mask(cache.real, cache.masked, cache.masked_count, position(slots), position(slots - 1), slots)
        return self._extend(x, tokens.shape[1], cache.real.shape[1] + slots, mask, cache)
