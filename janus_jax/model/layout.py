"""The rows of a decoder pass: the position of each row, what it attends to, and whether a loss reads it.

A family of rows (`model.families`) describes its rows as `RowGroup`s. Only `RowLayout` knows offsets. From the groups
it derives the slices, the attention blocks, the rows of the last layer, and the rows of each family in the result.

Legend: B sentences, R rows (each is a query), S key rows, M rows of a group that a loss reads, D model width.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from janus_jax.settings import rows_of_source
from janus_jax.types import Encoded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowGroup:
    """Decoder rows of one kind.

    A *memory* group gives keys and values, and its rows are also queries. The rows of other groups are only queries.
    """

    name: str = field(metadata={"static": True})
    family: str = field(metadata={"static": True})
    positions: jax.Array  # [B or 1, R] int32, 0-based
    attends: dict[str, jax.Array]  # name of a memory group -> attention mask [B or 1, R or 1, S], True where allowed
    tokens: jax.Array | None = None  # [B, R] int32 input tokens; None: every row reads the mask token
    read: jax.Array | None = None  # [B, M] int32, indices of the rows that a loss reads; None: all
    copies: jax.Array | None = None  # [B, R] int32, source places whose encoder states the rows read too
    memory: bool = field(default=True, metadata={"static": True})
    parallel: bool = field(default=True, metadata={"static": True})  # False: AR rows, which use no adapters
    predicts: bool = field(default=True, metadata={"static": True})  # False: no loss reads these rows
    position_table: str = field(default="", metadata={"static": True})  # family whose table embeds the positions
    layernorm: bool = field(default=True, metadata={"static": True})  # False: without the embedding layer norm

    @property
    def rows(self) -> int:
        """The number of rows, R."""
        return self.positions.shape[1]

    @property
    def read_rows(self) -> int:
        """The number of rows that a loss reads: M, R, or 0 without `predicts`."""
        if not self.predicts:
            return 0
        return self.rows if self.read is None else self.read.shape[1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionBlock:
    """Query rows [start, stop) attend to key rows [key_start, key_stop) where `mask` [B or 1, R or 1, S] is True."""

    start: int = field(metadata={"static": True})
    stop: int = field(metadata={"static": True})
    key_start: int = field(metadata={"static": True})
    key_stop: int = field(metadata={"static": True})
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SourceBlock:
    """Query rows [start, stop) attend to the encoder states of real source tokens."""

    start: int = field(metadata={"static": True})
    stop: int = field(metadata={"static": True})
    encoded: Encoded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ParallelRows:
    """The index of the first row that uses the adapters; all rows behind it do too."""

    queries: int = field(metadata={"static": True})
    memory: int = field(metadata={"static": True})  # among the rows that give keys and values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowLayout:
    """Groups of rows that go through the decoder's layers together, in this order.

    The last layer computes only the rows that a loss reads. With `last=True`, a method describes the queries of that
    layer.

    Raises:
      ValueError: two groups have one name, AR groups are not the first, or a group attends to groups that are absent, not
        memory, or not adjacent.
    """

    groups: tuple[RowGroup, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"row groups {names}: each name may appear only once")
        if any(not right.parallel and left.parallel for left, right in itertools.pairwise(self.groups)):
            raise ValueError(f"row groups {names}: AR groups come first")
        for group in self.groups:
            self._key_range(group)

    @property
    def rows(self) -> int:
        """The number of rows of a sentence."""
        return sum(group.rows for group in self.groups)

    @property
    def memory_rows(self) -> int:
        """The number of rows that give keys and values."""
        return sum(group.rows for group in self.groups if group.memory)

    @property
    def read_rows(self) -> int:
        """The number of rows that a loss reads. Only these go through the last layer."""
        return sum(group.read_rows for group in self.groups)

    def attention_pairs(self, last: bool = False) -> int:
        """The number of (query row, key row) pairs that self-attention computes, masked pairs counted."""
        return sum(
            rows * (stop - first) for group, rows in self._queries(last) for first, stop in [self._key_range(group)]
        )

    @property
    def row_slices(self) -> dict[str, slice]:
        """The slice of each group's rows in all rows."""
        return _consecutive((group.name, group.rows) for group in self.groups)

    @property
    def key_slices(self) -> dict[str, slice]:
        """The slice of each memory group's keys in all keys."""
        return _consecutive((group.name, group.rows) for group in self.groups if group.memory)

    def parallel(self, last: bool = False) -> ParallelRows:
        """Where the rows begin that use the adapters: all rows but the AR rows."""
        queries = sum(rows for group, rows in self._queries(last) if not group.parallel)
        return ParallelRows(queries, sum(group.rows for group in self.groups if group.memory and not group.parallel))

    def memory(self, x: jax.Array) -> jax.Array:
        """Selects the rows that give keys and values: all rows x [B, R, D] -> [B, `memory_rows`, D]."""
        spans: list[slice] = []
        for name in self.key_slices:
            rows = self.row_slices[name]
            if spans and spans[-1].stop == rows.start:
                rows = slice(spans.pop().start, rows.stop)
            spans.append(rows)
        return _joined([x[:, span] for span in spans])

    def read(self, x: jax.Array) -> jax.Array:
        """Selects the rows that a loss reads: all rows x [B, R, D] -> [B, `read_rows`, D]."""
        parts = []
        for group, _ in self._queries(last=True):
            rows = x[:, self.row_slices[group.name]]
            parts.append(rows if group.read is None else jnp.take_along_axis(rows, group.read[:, :, None], axis=1))
        return _joined(parts)

    def split(self, x: jax.Array) -> dict[str, jax.Array]:
        """Splits the rows of the last layer, x [B, `read_rows`, D], into the rows [B, M, D] of each family."""
        slices = _consecutive((group.name, rows) for group, rows in self._queries(last=True))
        rows: dict[str, list[jax.Array]] = {}
        for group, _ in self._queries(last=True):
            rows.setdefault(group.family, []).append(x[:, slices[group.name]])
        return {family: _joined(parts) for family, parts in rows.items()}

    def attention(self, last: bool = False) -> tuple[AttentionBlock, ...]:
        """The blocks of self-attention. Adjacent groups that attend to the same key rows share a block."""
        blocks: list[AttentionBlock] = []
        start = 0
        for group, rows in self._queries(last):
            first, stop = self._key_range(group)
            mask = self._mask(group, last)
            previous = blocks[-1] if blocks else None
            if previous and (previous.key_start, previous.key_stop) == (first, stop):
                previous_mask = _per_query(previous.mask, previous.stop - previous.start)
                mask = _concatenated([previous_mask, _per_query(mask, rows)], axis=1)
                blocks[-1] = AttentionBlock(previous.start, start + rows, first, stop, mask)
            else:
                blocks.append(AttentionBlock(start, start + rows, first, stop, mask))
            start += rows
        return tuple(blocks)

    def source_attention(self, encoded: Mapping[str, Encoded], last: bool = False) -> tuple[SourceBlock, ...]:
        """The blocks of cross-attention; `encoded` maps each family to the encoding that its rows read."""
        blocks: list[SourceBlock] = []
        start = 0
        for group, rows in self._queries(last):
            states = encoded[group.family]
            if blocks and blocks[-1].encoded is states:
                blocks[-1] = SourceBlock(blocks[-1].start, start + rows, states)
            else:
                blocks.append(SourceBlock(start, start + rows, states))
            start += rows
        return tuple(blocks)

    def _queries(self, last: bool) -> Iterator[tuple[RowGroup, int]]:
        """The groups that have query rows, and the number of these rows."""
        for group in self.groups:
            if rows := group.read_rows if last else group.rows:
                yield group, rows

    def _key_range(self, group: RowGroup) -> tuple[int, int]:
        """The key rows [first, stop) that a group attends to."""
        keys = self.key_slices
        spans = [span for name, span in keys.items() if name in group.attends]
        if not spans or len(spans) < len(group.attends):
            raise ValueError(
                f"rows {group.name!r} attend to {list(group.attends)}; the layout has the keys of {list(keys)}"
            )
        if any(left.stop != right.start for left, right in itertools.pairwise(spans)):
            raise ValueError(
                f"rows {group.name!r}: the groups {list(group.attends)} that they attend to must be adjacent"
            )
        return spans[0].start, spans[-1].stop

    def _mask(self, group: RowGroup, last: bool) -> jax.Array:
        """The attention mask of a group over its key range, [B or 1, R or 1, S]."""
        masks = [group.attends[other.name] for other in self.groups if other.name in group.attends]
        rows = max(mask.shape[1] for mask in masks)
        mask = _concatenated([_per_query(mask, rows) for mask in masks], axis=2)
        if last and group.read is not None and rows > 1:
            return jnp.take_along_axis(mask, group.read[:, :, None], axis=1)
        return mask


def bidirectional_mask(real: jax.Array) -> jax.Array:
    """Attention mask [B, 1, S]: every row attends to all rows of its group that are `real` [B, S]."""
    return real[:, None]


def source_row_counts(source: jax.Array, ratio: float) -> jax.Array:
    """The number of real rows of each sentence in a family with `ratio` rows per source token.

    Args:
      source: [..., S], True at real tokens.
      ratio: rows per source token.

    Returns:
      [...] int32.
    """
    table = jnp.array([rows_of_source(ratio, length) for length in range(source.shape[-1] + 1)], jnp.int32)
    return table[source.sum(axis=-1)]


def real_source_rows(source: jax.Array, ratio: float) -> jax.Array:
    """Flags [..., R], True at the real rows, which come first; the arguments are those of `source_row_counts`."""
    return jnp.arange(rows_of_source(ratio, source.shape[-1])) < source_row_counts(source, ratio)[..., None]


def _consecutive(widths: Iterable[tuple[str, int]]) -> dict[str, slice]:
    """Slices of the given widths, one after the other, by name."""
    slices, start = {}, 0
    for name, width in widths:
        slices[name] = slice(start, start + width)
        start += width
    return slices


def _joined(parts: list[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _per_query(mask: jax.Array, rows: int) -> jax.Array:
    """Repeats a mask for each query row: [B or 1, R or 1, S] -> [B or 1, R, S]."""
    return jnp.broadcast_to(mask, (mask.shape[0], rows, mask.shape[2]))


def _concatenated(masks: list[jax.Array], axis: int) -> jax.Array:
    """Concatenates masks along `axis`; their first axis may be B or 1."""
    if len(masks) == 1:
        return masks[0]
    sentences = max(mask.shape[0] for mask in masks)
    return jnp.concatenate([jnp.broadcast_to(mask, (sentences, *mask.shape[1:])) for mask in masks], axis=axis)
