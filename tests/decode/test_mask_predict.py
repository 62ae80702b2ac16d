"""Mask-predict: schedules, rules and the choice between candidates."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.decode.mask_predict import (
    MaskPredictRules,
    best_hypotheses,
    candidate_lengths,
    choose,
    mask_predict,
    remask_counts,
)
from janus_jax.types import Specials

SPECIALS = Specials()
RELEASED = MaskPredictRules.RELEASED
SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared"


def _table_model(table):
    """Logits [N, T, V] that depend on the slot alone."""
    return lambda tokens: jnp.broadcast_to(jnp.asarray(table, jnp.float32), (tokens.shape[0], *np.shape(table)))


def test_remask_counts_equal_the_released_ones():
    path = SHARED / "golden" / "remask_counts.npz"
    if not path.exists():
        pytest.skip("golden arrays are not beside this checkout")
    with np.load(path) as golden:
        for name in golden.files:
            expected = golden[name]
            passes = int(name.rsplit("_", 1)[1])
            ours = [remask_counts(length + 2, passes) for length in range(len(expected))]
            np.testing.assert_array_equal(ours, expected, err_msg=name)


def test_top_lengths_are_distinct_and_within_the_limits():
    logits = jnp.asarray([[9.0, 8.0, 1.0, 3.0, 2.0, 7.0]])
    assert candidate_lengths(logits, 3, limit=4, rules=MaskPredictRules()).tolist() == [[3, 4, 2]]
    with pytest.raises(ValueError, match="only 3"):
        candidate_lengths(logits, 4, limit=4, rules=MaskPredictRules())


@pytest.mark.parametrize(
    ("best", "k", "expected"), [(7, 3, [6, 7, 8]), (2, 3, [2, 2, 3]), (7, 4, [5, 6, 7, 8]), (0, 1, [2])]
)
def test_released_lengths_are_contiguous_and_keep_duplicates(best, k, expected):
    logits = jax.nn.one_hot(jnp.asarray([best]), 20)
    assert candidate_lengths(logits, k, limit=19, rules=RELEASED).tolist() == [expected]


def test_the_least_sure_slots_are_masked_again_and_ties_go_to_lower_positions():
    # Slots 1..4: token 5 with falling, then equal certainty. Two of four slots are masked again after pass 1 of 2.
    table = np.zeros((6, 8))
    table[1:5, 5] = [3.0, 1.0, 1.0, 1.0]
    out = mask_predict(
        _table_model(table), jnp.asarray([[6]]), passes=2, specials=SPECIALS, limit=6, vocab_size=8, trace=True
    )
    assert out.trace.remasked[0, 0, 0].tolist() == [False, False, True, True, False, False]
    assert not out.trace.remasked[1].any()
    assert out.tokens[0, 0].tolist() == [0, 5, 5, 5, 5, 2]
    log_probs = jax.nn.log_softmax(jnp.asarray(table), axis=-1)
    np.testing.assert_allclose(out.token_scores[0, 0, 1:5], log_probs[1:5, 5], rtol=1e-6)
    np.testing.assert_allclose(out.scores[0, 0], log_probs[1:5, 5].mean(), rtol=1e-6)


def test_masked_slots_alone_change_and_the_model_sees_the_masks():
    seen = []

    def model(tokens):
        seen.append(np.asarray(tokens))
        masks = jnp.sum(tokens == SPECIALS.mask, axis=-1)  # the prediction tells how many masks were seen
        return jax.nn.one_hot(5 + jnp.broadcast_to(masks[:, None], tokens.shape), 20) * (
            4.0 + jnp.arange(tokens.shape[1])[:, None]
        )

    with jax.disable_jit():
        out = mask_predict(model, jnp.asarray([[6]]), passes=4, specials=SPECIALS, limit=7, vocab_size=20)
    assert [int((t == SPECIALS.mask).sum()) for t in seen] == [4, 3, 2, 1]
    # Certainty rises with the position, so that slots are settled from the right.
    assert out.tokens[0, 0].tolist() == [0, 6, 7, 8, 9, 2, 1]


def test_specials_are_never_emitted_unless_released():
    table = np.zeros((4, 8))
    table[:, [0, 1, 4]] = 9.0
    table[:, 4] = 10.0
    table[:, 6] = 1.0

    def run(rules):
        return mask_predict(
            _table_model(table), jnp.asarray([[4]]), passes=3, specials=SPECIALS, limit=4, vocab_size=8, rules=rules
        )

    assert run(MaskPredictRules()).tokens[0, 0].tolist() == [0, 6, 6, 2]
    assert run(RELEASED).tokens[0, 0].tolist() == [0, 4, 4, 2]


def test_columns_past_the_vocabulary_are_never_emitted():
    table = np.zeros((4, 8))
    table[:, 6:] = 5.0
    table[:, 5] = 1.0
    out = mask_predict(_table_model(table), jnp.asarray([[4]]), passes=1, specials=SPECIALS, limit=4, vocab_size=6)
    assert out.tokens[0, 0].tolist() == [0, 5, 5, 2]


def test_an_inner_eos_ends_the_sentence():
    table = np.zeros((6, 8))
    table[1, 5] = table[2, 2] = table[3, 6] = table[4, 7] = 4.0
    arguments = {"passes": 1, "specials": SPECIALS, "limit": 6, "vocab_size": 8}
    ours = mask_predict(_table_model(table), jnp.asarray([[6]]), **arguments)
    assert ours.tokens[0, 0].tolist() == [0, 5, 2, 1, 1, 1]
    assert ours.lengths.tolist() == [[3]]
    released = mask_predict(_table_model(table), jnp.asarray([[6]]), rules=RELEASED, **arguments)
    assert released.tokens[0, 0].tolist() == [0, 5, 2, 6, 7, 2]
    # Released: the mean runs over bos and eos too, at 0.
    np.testing.assert_allclose(released.scores[0, 0] * 6, ours.scores[0, 0] * 4, rtol=1e-5)


def test_an_empty_candidate_wins_only_alone():
    table = np.zeros((4, 8))
    table[:, 5] = 1.0
    arguments = {"passes": 1, "specials": SPECIALS, "limit": 4, "vocab_size": 8}
    both = mask_predict(_table_model(table), jnp.asarray([[2, 4]]), **arguments)
    assert choose(both).tolist() == [1]
    assert choose(both, RELEASED).tolist() == [0]
    alone = mask_predict(_table_model(table), jnp.asarray([[2]]), **arguments)
    result = best_hypotheses(alone, SPECIALS)
    assert result.tokens[0, 0].tolist() == [2, 1, 1]
    assert result.lengths.tolist() == [[1]]


def test_projecting_in_chunks_changes_nothing():
    rng = np.random.default_rng(0)
    table, weights = rng.normal(size=(9, 5)), jnp.asarray(rng.normal(size=(5, 12)), jnp.float32)
    lengths = jnp.asarray([[9, 4, 7], [5, 6, 8]])

    def hidden(tokens):
        return _table_model(table)(tokens) + tokens[..., None] * 0.1

    arguments = {"passes": 4, "specials": SPECIALS, "limit": 9, "vocab_size": 12}
    whole = mask_predict(lambda t: hidden(t) @ weights, lengths, **arguments)
    parts = jax.jit(lambda n: mask_predict(hidden, n, project_fn=lambda rows: rows @ weights, chunk=7, **arguments))(
        lengths
    )
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_allclose(whole.scores, parts.scores, rtol=1e-5)


def test_the_probability_of_the_length_counts_in_the_choice():
    from janus_jax.decode.mask_predict import with_length_scores

    # Slots 1 and 2 are sure; slot 3, which only the longer candidate has, is a little less so.
    table = np.full((5, 8), -9.0)
    table[1, 5] = table[2, 6] = 9.0
    table[3, 7], table[3, 5] = 1.0, -1.0
    lengths = jnp.array([[4, 5]])
    found = mask_predict(_table_model(table), lengths, passes=1, specials=SPECIALS, limit=5, vocab_size=8)
    assert choose(found).tolist() == [0], "by its tokens alone the shorter candidate wins"
    logits = jnp.log(jnp.array([[0.01, 0.01, 0.01, 0.01, 0.06, 0.9]]))
    weighted = with_length_scores(found, logits, lengths)
    np.testing.assert_allclose(weighted.scores - found.scores, [[np.log(0.06) / 2, np.log(0.9) / 3]], rtol=1e-4)
    assert choose(weighted).tolist() == [1]
