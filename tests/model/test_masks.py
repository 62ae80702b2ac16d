"""Attention masks against hand-written matrices (docs/method.md, section 2)."""

import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import ModelConfig
from janus_jax.model.families import ar, aux, mask_predict
from janus_jax.model.layout import bidirectional_mask
from janus_jax.types import Batch, Specials

SPECIALS = Specials()


def matrix(text):
    """Rows of x (attends) and . (does not) as a bool array."""
    return np.array([[c == "x" for c in line.split()] for line in text.strip().splitlines()])


def test_ar_slots_attend_to_themselves_and_the_past():
    expected = matrix("""
        x . .
        x x .
        x x x
    """)
    np.testing.assert_array_equal(ar.causal_mask(3)[0], expected)


def test_nar_rows_attend_to_all_real_rows():
    real = jnp.array([[True, True, False]])
    np.testing.assert_array_equal(bidirectional_mask(real)[0], [[True, True, False]])


def test_gold_and_aux_rows_attend_to_gold_tokens_on_the_left_and_masks_on_the_right():
    # Target: bos a b c d eos pad; b (position 2) and d (position 4) are masked, the third place of M is empty.
    real = jnp.array([[True] * 6 + [False]])
    mask = aux.bridge_mask(real, jnp.array([[2, 4, 0]]), jnp.array([2]))[0]
    # Columns: bos a [b] c [d] eos pad | gold b, gold d, empty. Visible tokens are always attended to.
    expected_gold = matrix("""
        x x . x x x . x . .
        x x . x . x . x x .
    """)
    expected_aux = matrix("""
        x x x x x x . . . .
        x x . x x x . x . .
    """)
    np.testing.assert_array_equal(mask[:2], expected_gold)
    np.testing.assert_array_equal(mask[3:5], expected_aux)


def test_no_row_attends_to_empty_places_of_m():
    real = jnp.ones((1, 5), bool)
    mask = aux.bridge_mask(real, jnp.array([[1, 0, 0]]), jnp.array([1]))[0]
    assert not mask[:, 5 + 1 :].any()


def test_masked_flags_and_tokens():
    batch = Batch(
        source=jnp.zeros((2, 3), jnp.int32),
        target=jnp.array([[0, 7, 8, 2, 1], [0, 7, 8, 9, 2]]),
        masked=jnp.array([[2, 0], [1, 3]]),
        masked_count=jnp.array([1, 2]),
        example_id=jnp.arange(2),
    )
    np.testing.assert_array_equal(
        mask_predict.masked_tokens(batch, SPECIALS),
        [[0, 7, SPECIALS.mask, 2, 1], [0, SPECIALS.mask, 8, SPECIALS.mask, 2]],
    )


@pytest.mark.parametrize(
    ("start", "position", "inputs", "positions", "targets"),
    [
        ("bos", "target", [0, 7, 8], [1, 2, 3], [7, 8, 2]),
        ("bos", "input", [0, 7, 8], [0, 1, 2], [7, 8, 2]),
        ("eos", "target", [2, 0, 7, 8], [0, 1, 2, 3], [0, 7, 8, 2]),
    ],
)
def test_ar_slots(start, position, inputs, positions, targets):
    config = ModelConfig(ar_start=start, ar_slot_position=position)
    target = jnp.array([[0, 7, 8, 2]])
    tokens = ar.inputs(target, config, SPECIALS)
    np.testing.assert_array_equal(tokens[0], inputs)
    np.testing.assert_array_equal(ar.slot_positions(jnp.arange(len(inputs)), config), positions)
    np.testing.assert_array_equal(ar.targets(target, config)[0], targets)
    # slot_of gives the slot that predicts the token at position 2 (here 8).
    slot = int(ar.slot_of(jnp.array(2), config))
    assert ar.targets(target, config)[0, slot] == 8
