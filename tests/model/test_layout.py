"""The row layout against hand-written offsets, masks and rows for a target of six tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import ModelConfig
from janus_jax.model.families import row_layout, with_attended
from janus_jax.model.layout import RowGroup, RowLayout
from janus_jax.types import Batch, Encoded, Specials

SPECIALS = Specials()
CONFIG = ModelConfig(ctc_ratio=1.5, dag_ratio=1.5)
# bos a b c d eos, of which b (position 2) and d (position 4) are masked; a source of four tokens, the last one padding.
BATCH = Batch(
    source=jnp.array([[0, 9, 2, 1]]),
    target=jnp.array([[0, 11, 12, 13, 14, 2]]),
    masked=jnp.array([[2, 4]]),
    masked_count=jnp.array([2]),
    example_id=jnp.array([0]),
)
ALL = ("ar", "ctc", "nar", "aux")


def layout(*families, config=CONFIG, **changes):
    return row_layout(dataclasses.replace(BATCH, **changes), config, SPECIALS, families)


def numbered(rows):
    """Rows [1, R, 1] whose values are their indices."""
    return jnp.arange(rows, dtype=jnp.float32)[None, :, None]


def test_rows_stand_in_the_order_of_the_joint_pass():
    joint = layout(*ALL)
    assert [(group.name, group.rows) for group in joint.groups] == [
        ("ar_query", 5), ("ar_content", 5), ("ctc", 6), ("nar", 6), ("aux_gold", 2), ("aux_query", 2),
    ]  # fmt: skip
    assert (joint.rows, joint.memory_rows, joint.read_rows) == (26, 19, 15)
    assert joint.row_slices["nar"] == slice(16, 22)
    assert joint.key_slices == {
        "ar_content": slice(0, 5), "ctc": slice(5, 11), "nar": slice(11, 17), "aux_gold": slice(17, 19),
    }  # fmt: skip
    assert joint.memory(numbered(26)).ravel().tolist() == list(range(5, 24))


def test_tokens_and_positions_of_each_group():
    groups = {group.name: group for group in layout(*ALL).groups}
    mask = SPECIALS.mask
    tokens = {name: None if group.tokens is None else group.tokens[0].tolist() for name, group in groups.items()}
    assert tokens == {
        "ar_query": None, "ar_content": [0, 11, 12, 13, 14], "ctc": None, "nar": [0, 11, mask, 13, mask, 2],
        "aux_gold": [12, 14], "aux_query": None,
    }  # fmt: skip
    assert {name: group.positions[0].tolist() for name, group in groups.items()} == {
        "ar_query": [1, 2, 3, 4, 5], "ar_content": [1, 2, 3, 4, 5], "ctc": [0, 1, 2, 3, 4, 5],
        "nar": [0, 1, 2, 3, 4, 5], "aux_gold": [2, 4], "aux_query": [2, 4],
    }  # fmt: skip


def test_attention_blocks_cover_the_rows_and_name_their_keys():
    blocks = [(b.start, b.stop, b.key_start, b.key_stop) for b in layout(*ALL).attention()]
    # Neighbours with the same keys share a block: AR query and content; AUX gold and query.
    assert blocks == [(0, 10, 0, 5), (10, 16, 5, 11), (16, 22, 11, 17), (22, 26, 11, 19)]
    masks = [np.asarray(b.mask[0]).astype(int).tolist() for b in layout(*ALL).attention()]
    triangle = np.tri(5, dtype=int).tolist()
    assert masks[0] == triangle + triangle
    assert masks[1] == [[1, 1, 1, 1, 1, 0]]  # ceil(1.5 * 3) rows belong to the sentence
    assert masks[2] == [[1] * 6]
    assert masks[3] == [
        # bos a [b] c [d] eos | gold b, gold d
        [1, 1, 0, 1, 1, 1, 1, 0],
        [1, 1, 0, 1, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 1, 1, 1, 1, 0],
    ]


def test_the_last_layer_has_only_the_rows_that_a_loss_reads():
    joint = layout(*ALL)
    read = joint.read(numbered(26)).ravel().tolist()
    assert read == [0, 1, 2, 3, 4, *range(10, 16), 18, 20, 24, 25]
    blocks = [(b.start, b.stop, b.key_start, b.key_stop) for b in joint.attention(last=True)]
    assert blocks == [(0, 5, 0, 5), (5, 11, 5, 11), (11, 13, 11, 17), (13, 15, 11, 19)]
    assert np.asarray(joint.attention(last=True)[0].mask[0]).astype(int).tolist() == np.tri(5, dtype=int).tolist()
    rows = joint.split(numbered(15))
    assert {name: x.ravel().tolist() for name, x in rows.items()} == {
        "ar": [0, 1, 2, 3, 4], "ctc": [5, 6, 7, 8, 9, 10], "nar": [11, 12], "aux": [13, 14],
    }  # fmt: skip
    assert joint.attention_pairs() == 10 * 5 + 6 * 6 + 6 * 6 + 4 * 8
    assert joint.attention_pairs(last=True) == 5 * 5 + 6 * 6 + 2 * 6 + 2 * 8


def test_content_rows_predict_where_there_are_no_query_rows():
    alone = layout("ar", config=ModelConfig(ar_stream="content"))
    assert [group.name for group in alone.groups] == ["ar_content"]
    assert (alone.rows, alone.memory_rows, alone.read_rows) == (5, 5, 5)


def test_an_index_prunes_masks_with_one_row_a_query():
    group = RowGroup(
        "x", "nar", jnp.arange(3)[None], {"x": jnp.tri(3, dtype=bool)[None]}, tokens=jnp.zeros((1, 3), jnp.int32),
        read=jnp.array([[2, 0]]),
    )  # fmt: skip
    (block,) = RowLayout((group,)).attention(last=True)
    assert np.asarray(block.mask[0]).astype(int).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_memory_rows_that_are_not_adjacent_are_concatenated():
    def group(name, memory):
        return RowGroup(name, "nar", jnp.arange(2)[None], {"a": jnp.ones((1, 1, 2), bool)}, memory=memory)

    rows = RowLayout((group("a", True), group("b", False), group("c", True)))
    assert rows.memory(numbered(6)).ravel().tolist() == [0, 1, 4, 5]
    assert rows.key_slices["c"] == slice(2, 4)


def test_vertices_read_bos_masks_and_eos_and_stand_behind_ctc_rows():
    joint = layout("nar", "dag", "ctc")
    assert [group.name for group in joint.groups] == ["ctc", "dag", "nar"]
    vertices = joint.groups[1]
    mask = SPECIALS.mask
    # Five of six rows belong to the source of three tokens.
    assert vertices.tokens.tolist() == [[0, mask, mask, mask, 2, mask]]
    assert vertices.positions.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert vertices.attends["dag"].astype(int).tolist() == [[[1, 1, 1, 1, 1, 0]]]
    assert (vertices.position_table, joint.groups[0].position_table) == ("dag", "")


def test_families_may_read_different_encodings():
    one, other = (Encoded(jnp.zeros((1, 4, 2)) + i, BATCH.source != 1, jnp.zeros((1, 3))) for i in range(2))
    encoded = {"ar": one, "ctc": other, "nar": other, "aux": other}
    blocks = layout(*ALL).source_attention(encoded)
    assert [(b.start, b.stop, float(b.encoded.states[0, 0, 0])) for b in blocks] == [(0, 10, 0.0), (10, 26, 1.0)]
    last = layout(*ALL).source_attention(encoded, last=True)
    assert [(b.start, b.stop) for b in last] == [(0, 5), (5, 15)]
    assert len(layout(*ALL).source_attention(dict.fromkeys(ALL, one))) == 1


def test_shown_rows_read_their_token_and_the_others_their_usual_input():
    shown = {"ctc": jnp.array([[-1, 7, -1, -1, 8, -1]])}
    rows = row_layout(BATCH, CONFIG, SPECIALS, ("ctc",), shown)
    mask = SPECIALS.mask
    assert rows.groups[0].tokens[0].tolist() == [mask, 7, mask, mask, 8, mask]


def test_invalid_layouts_are_refused():
    lone = RowGroup("a", "nar", jnp.arange(2)[None], {"b": jnp.ones((1, 1, 2), bool)})
    with pytest.raises(ValueError, match=r"rows 'a' attend to \['b'\]; the layout has the keys of \['a'\]"):
        RowLayout((lone,))
    same = RowGroup("a", "nar", jnp.arange(2)[None], {"a": jnp.ones((1, 1, 2), bool)})
    with pytest.raises(ValueError, match="each name may appear only once"):
        RowLayout((same, same))
    apart = dataclasses.replace(same, name="c", attends={"a": same.attends["a"], "c": same.attends["a"]})
    with pytest.raises(ValueError, match="must be adjacent"):
        RowLayout((same, dataclasses.replace(same, name="b"), apart))
    with pytest.raises(ValueError, match="with aux also nar"):
        layout("aux")
    with pytest.raises(ValueError, match="unknown families"):
        with_attended(("graph",))
