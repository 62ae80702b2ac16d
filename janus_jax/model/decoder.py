"""The decoder: one set of layers for every kind of row.

Legend: B sentences, N rows of a search (a multiple of B), R query rows, S source length or key rows, T target length,
U AR slots, M masked tokens at most, L cache length, k new tokens, D model width, H heads, K head width.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from janus_jax.model import streams as st
from janus_jax.model.attention import Attention
from janus_jax.model.encoder import Embedder, remat_layer
from janus_jax.model.layers import Layer, Table, layer_norm
from janus_jax.parallel import BATCH, constrain
from janus_jax.types import Batch, Encoded, Specials, Streams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """Encoder states as every layer's cross-attention reads them: projected once, whatever number of passes follows."""

    keys: tuple[jax.Array, ...]  # per layer [B, S, H, K]
    values: tuple[jax.Array, ...]
    mask: jax.Array  # [B, S] bool

    def of(self, layer: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys, values and mask [B, 1, S] for a layer's attention."""
        return self.keys[layer], self.values[layer], self.mask[:, None]


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
class Cross:
    """Query rows [start, stop) attend to the real rows of an encoder's states."""

    start: int = field(metadata={"static": True})
    stop: int = field(metadata={"static": True})
    encoded: Encoded


class DecoderLayer(Layer):
    """Self-attention, cross-attention, feed-forward, with residuals; post-LN or pre-LN."""

    def setup(self) -> None:
        c = self.config
        self.self_attn = Attention(c.heads, c.d_model, c.attention_dropout, self.dtype)
        self.self_attn_layer_norm = layer_norm(self.dtype)
        self.encoder_attn = Attention(c.heads, c.d_model, c.attention_dropout, self.dtype)
        self.encoder_attn_layer_norm = layer_norm(self.dtype)
        self.setup_feed_forward()

    def content(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Self-attention keys and values of the content rows, projected from the layer input [B, R, D]."""
        pre = self.config.norm == "pre"
        return self.self_attn.keys_values(self.self_attn_layer_norm(memory) if pre else memory)

    def cross(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-attention keys and values of encoder states [B, S, D]."""
        return self.encoder_attn.keys_values(states)

    def joint(self, x: jax.Array, memory: jax.Array, sights: tuple, crosses: tuple) -> jax.Array:
        """The layer for the rows of the joint pass.

        Args:
          x: [B, R, D] query rows.
          memory: [B, R', D] content rows.
          sights: `Sight`s of self-attention; crosses: `Cross`es of cross-attention; each covers the rows in order.
        """
        keys, values = self.content(memory)
        attention = [(s.start, s.stop, keys[:, s.first : s.last], values[:, s.first : s.last], s.mask) for s in sights]
        over_source = [(c.start, c.stop, *self.cross(c.encoded.states), c.encoded.mask[:, None]) for c in crosses]
        return constrain(self.advance(x, attention, over_source), BATCH)

    def advance(self, x: jax.Array, attention: list, over_source: list) -> jax.Array:
        """Rows x [N, R, D] through the layer, with keys and values at hand.

        Args:
          attention, over_source: (start, stop, keys, values, mask) for query rows [start, stop) of self-attention and
            of cross-attention. Keys of B sentences may serve N = B * n rows, those of a sentence adjacent.
        """
        pre = self.config.norm == "pre"
        for module, norm, groups in (
            (self.self_attn, self.self_attn_layer_norm, attention),
            (self.encoder_attn, self.encoder_attn_layer_norm, over_source),
        ):
            q = module.queries(norm(x) if pre else x)
            rows = [_attend(module, q[:, start:stop], k, v, mask) for start, stop, k, v, mask in groups]
            attended = rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
            x = x + self.drop(module.output(attended))
            x = x if pre else norm(x)
        return self.feed_forward(x)


def _attend(module: Attention, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of rows [N, R, H, K] over keys of B = N / n sentences: a sentence's n * R rows are queries side by side."""
    if q.shape[0] == k.shape[0]:
        return module.attend(q, k, v, mask)
    folded = q.reshape(k.shape[0], -1, *q.shape[2:])
    return module.attend(folded, k, v, mask).reshape(q.shape)


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
        self, table: Table, encoded: Encoded, batch: Batch, streams: tuple[str, ...], encoded_nar: Encoded | None
    ) -> Streams:
        """The joint pass; see `Janus.train_streams`."""
        c, target = self.config, batch.target
        real = target != self.specials.pad
        ar_query = c.ar_stream == "query"
        inputs = st.ar_inputs(target, c, self.specials)
        slots, masked = inputs.shape[1], batch.masked.shape[1]
        x = self.joint_rows(table, inputs, batch, streams)
        sights = st.joint_sights(batch, real, slots, streams, ar_query)
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
        parts = []
        if "ar" in streams:
            parts.append(x[:, :slots])
        if "nar" in streams:
            nar = x[:, ar_rows : ar_rows + target.shape[1]]
            parts.append(jnp.take_along_axis(nar, batch.masked[:, :, None], axis=1))
        if "aux" in streams:
            parts.append(x[:, -masked:])
        queries = jnp.concatenate(parts, axis=1)
        sights = st.last_sights(sights, slots, masked, streams)
        split = slots if "ar" in streams else 0
        memory = x[:, content_start:content_stop]
        x = self.layers[-1].joint(queries, memory, sights, crosses(split, queries.shape[1]))
        x = self._finish(x)
        nar_at = split + (masked if "nar" in streams else 0)
        return Streams(
            ar=x[:, :split] if "ar" in streams else None,
            nar=x[:, split:nar_at] if "nar" in streams else None,
            aux=x[:, nar_at:] if "aux" in streams else None,
        )

    def joint_rows(self, table: Table, inputs: jax.Array, batch: Batch, streams: tuple[str, ...]) -> jax.Array:
        """Embedded rows [AR query | AR content | NAR | true | AUX] of the streams asked for, [B, R, D]."""
        c, target = self.config, batch.target
        mask_vector = table(jnp.array(self.specials.mask))
        rows = []
        if "ar" in streams:
            positions = st.ar_slot_positions(jnp.arange(inputs.shape[1]), c)
            content = table(inputs)
            if c.ar_stream == "query":
                rows.append(self.embed(jnp.broadcast_to(mask_vector, content.shape), positions))
            rows.append(self.embed(content, positions))
        if "nar" in streams:
            normalise = c.nar_layernorm_embedding
            vectors = table(st.nar_tokens(batch, self.specials))
            rows.append(self.embed(vectors, jnp.arange(target.shape[1]), normalise))
            if "aux" in streams:
                true = table(jnp.take_along_axis(target, batch.masked, axis=1))
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
        source = source or self.project_source(encoded)
        x = self.embed(table(tokens), jnp.arange(tokens.shape[1]), self.config.nar_layernorm_embedding)
        mask = st.nar_mask(tokens != self.specials.pad)
        for i, layer in enumerate(self.layers):
            keys, values = layer.content(x)
            if i == len(self.layers) - 1 and slots is not None:
                x = jnp.take_along_axis(x, slots[:, :, None], axis=1)
            rows = x.shape[1]
            x = layer.advance(x, [(0, rows, keys, values, mask)], [(0, rows, *source.of(i))])
        return self._finish(x)

    def init_cache(self, encoded: Encoded, rows_per_sentence: int, max_length: int, source: Source | None) -> Cache:
        """An empty cache; see `Janus.init_cache`."""
        c = self.config
        rows = encoded.states.shape[0] * rows_per_sentence
        shape = (rows, max_length, c.heads, c.d_model // c.heads)
        return Cache(
            keys=tuple(jnp.zeros(shape, self.dtype) for _ in self.layers),
            values=tuple(jnp.zeros(shape, self.dtype) for _ in self.layers),
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
        rows = jnp.arange(tokens.shape[0])[:, None]
        mask = jnp.arange(cache.keys[0].shape[1]) <= slots[:, :, None]
        all_keys, all_values = [], []
        for i, layer in enumerate(self.layers):
            k, v = layer.content(x[:, queries:])
            all_keys.append(cache.keys[i].at[rows, slots].set(k))
            all_values.append(cache.values[i].at[rows, slots].set(v))
            if i == len(self.layers) - 1:
                x = x[:, :new]  # with query rows, content rows are done: only their keys and values were needed
            n = x.shape[1]
            attention = [(0, n, all_keys[i], all_values[i], jnp.tile(mask, (1, n // new, 1)))]
            over_source = [(0, n, *cache.source.of(i))]
            x = layer.advance(x, attention, over_source)
        longer = replace(cache, keys=tuple(all_keys), values=tuple(all_values), length=cache.length + new)
        return self._finish(x), longer
