"""Invariants of the model: padding changes nothing, masks hide tokens, the cache equals teacher forcing."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from janus_jax.config import ConfigError, ModelConfig
from janus_jax.model import Janus, layers, padded_vocab
from janus_jax.types import Specials
from tests import tiny
from tests.further import further

VARIANTS = [
    {},
    further({"norm": "pre"}),
    {"ar_stream": "content"},
    further({"ar_slot_position": "input"}),
    {"layernorm_embedding": True, "activation": "gelu", "scale_embedding": False},
]


@partial(jax.jit, static_argnames=("net", "families"))
def run(net, params, batch, families=("ar", "nar", "aux")):
    return net.train_rows(params, net.encode(params, batch.source), batch, families=families)


@partial(jax.jit, static_argnames=("net", "most"))
def init_gaps(net, params, source, tokens, most):
    return net.init_gaps(params, net.encode(params, source), tokens, most)


@partial(jax.jit, static_argnames="net")
def aux_step(net, params, tokens, cache):
    return net.aux_step(params, tokens, cache)


@partial(jax.jit, static_argnames="net")
def encode(net, params, source, rng=None):
    return net.encode(params, source, rng)


@partial(jax.jit, static_argnames="net")
def ar_rows(net, params, encoded, tokens):
    return net.ar_rows(params, encoded, tokens)


@partial(jax.jit, static_argnames="net")
def nar_rows(net, params, encoded, tokens):
    return net.nar_rows(params, encoded, tokens)


@partial(jax.jit, static_argnames=("net", "per_sentence", "most", "reordered"))
def start(net, params, source, per_sentence, most, reordered=False):
    """The encoding of sources, and an empty cache."""
    encoded = net.encode(params, source)
    return encoded, net.init_cache(params, encoded, per_sentence, most, reordered=reordered)


@partial(jax.jit, static_argnames="net")
def ar_step(net, params, tokens, cache):
    return net.ar_step(params, tokens, cache)


@partial(jax.jit, static_argnames="net")
def ar_step_reordered(net, params, tokens, cache, order):
    """The rows of a step, and the cache with the hypotheses in another order."""
    rows, cache = net.ar_step(params, tokens, cache)
    return rows, net.reorder_cache(cache, order)


@partial(jax.jit, static_argnums=0)
def gradient(net, params, batch):
    """The gradient of the sum of squares of all rows."""
    return jax.grad(lambda p: sum((x**2).sum() for x in jax.tree.leaves(run(net, p, batch))))(params)


def real_rows(rows, batch):
    """The hidden rows that losses read, [N, D] for each family."""
    slots = np.asarray(batch.target)[:, 1:] != 1
    ranks = np.arange(batch.masked.shape[1]) < np.asarray(batch.masked_count)[:, None]
    return tuple(np.asarray(rows[name])[where] for name, where in (("ar", slots), ("nar", ranks), ("aux", ranks)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_on_any_axis_changes_no_real_row(variant):
    net, params = tiny.model(**variant)
    batch = tiny.batch()
    wider = tiny.padded(batch, source=3, target=2, masked=4, rows=2)
    for a, b in zip(real_rows(run(net, params, batch), batch), real_rows(run(net, params, wider), wider), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_source_padding_may_stand_on_the_left():
    net, params = tiny.model()
    source = np.array([[0, 7, 8, 9, 2, 1, 1]])
    moved = np.array([[1, 1, 0, 7, 8, 9, 2]])
    right, left = jax.device_get((encode(net, params, source), encode(net, params, moved)))
    np.testing.assert_allclose(right.states[0, :5], left.states[0, 2:], atol=2e-6)
    np.testing.assert_allclose(right.length_logits, left.length_logits, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_row_depends_on_tokens_that_its_mask_hides(variant):
    net, params = tiny.model(**variant)
    batch = tiny.batch(rows=1, target=8, masked=4)
    batch = dataclasses.replace(
        batch,
        target=np.array([[0, 11, 12, 13, 14, 15, 16, 2]]),
        masked=np.array([[2, 3, 5, 0]]),
        masked_count=np.array([3]),
    )
    before = jax.device_get(run(net, params, batch))
    for position in range(1, 7):
        target = batch.target.copy()
        target[0, position] = 30
        after = jax.device_get(run(net, params, dataclasses.replace(batch, target=target)))
        moved = {name: np.abs(before[name] - after[name]).max(-1)[0] for name in ("ar", "nar", "aux")}
        # AR slot t attends to y_0..y_t.
        np.testing.assert_array_equal(moved["ar"] > 1e-6, np.arange(7) >= position)
        if position in (2, 3, 5):
            rank = (2, 3, 5).index(position)
            assert moved["nar"][:3].max() < 1e-6, "a masked token leaked into the NAR rows"
            np.testing.assert_array_equal(moved["aux"][:3] > 1e-6, np.arange(3) > rank)
        else:
            assert moved["nar"][:3].min() > 1e-6
            assert moved["aux"][:3].min() > 1e-6


def test_mask_rows_of_the_joint_pass_equal_a_plain_bidirectional_pass():
    from janus_jax.model.families.mask_predict import masked_tokens

    net, params = tiny.model()
    batch = tiny.batch()
    tokens = jax.jit(masked_tokens, static_argnums=1)(batch, net.specials)
    plain = tiny.nar_rows(net, params, batch.source, tokens)
    joint = run(net, params, batch)["nar"]
    ranks = np.arange(batch.masked.shape[1]) < np.asarray(batch.masked_count)[:, None]
    expected = np.take_along_axis(np.asarray(plain), np.asarray(batch.masked)[:, :, None], axis=1)
    np.testing.assert_allclose(np.asarray(joint)[ranks], expected[ranks], atol=2e-6)


@pytest.mark.parametrize("families", [("ar",), ("nar",), ("ar", "nar"), ("nar", "aux")])
def test_a_family_alone_equals_its_part_of_the_joint_pass(families):
    net, params = tiny.model()
    batch = tiny.batch()
    joint, alone = run(net, params, batch), run(net, params, batch, families=families)
    for name in ("ar", "nar", "aux"):
        if name in families:
            np.testing.assert_allclose(alone[name], joint[name], atol=2e-6)
        else:
            assert name not in alone


def test_invalid_combinations_of_families_are_refused():
    net, params = tiny.model()
    with pytest.raises(ValueError, match="with aux also nar"):
        run(net, params, tiny.batch(), families=("ar", "aux"))
    with pytest.raises(ValueError, match=r"unknown families of rows \['graph'\]"):
        run(net, params, tiny.batch(), families=("ar", "graph"))
    with pytest.raises(ValueError, match="no CTC rows"):
        run(net, params, tiny.batch(), families=("ctc",))
    with pytest.raises(ValueError, match=r"no DAG rows; set model\.dag_ratio"):
        run(net, params, tiny.batch(), families=("dag",))


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_steps_equal_teacher_forcing_and_the_joint_pass(variant):
    net, params = tiny.model(**variant)
    batch = tiny.batch()
    tokens = batch.target[:, :-1]
    encoded, cache = start(net, params, batch.source, 1, tokens.shape[1])
    forced = ar_rows(net, params, encoded, tokens)
    np.testing.assert_allclose(forced, run(net, params, batch)["ar"], atol=2e-6)
    hidden = []
    for first, stop in ((0, 1), (1, 2), (2, 5), (5, 7)):  # one token at a time, and several at once
        rows, cache = ar_step(net, params, tokens[:, first:stop], cache)
        hidden.append(rows)
    logp = [log_softmax(tiny.project(net, params, x), axis=-1) for x in (np.concatenate(hidden, 1), forced)]
    np.testing.assert_allclose(logp[0], logp[1], atol=2e-5)


def test_a_rejected_draft_only_lowers_the_cache_length():
    net, params = tiny.model()
    batch = tiny.batch()
    _, cache = start(net, params, batch.source, 1, 7)
    _, cache = ar_step(net, params, batch.target[:, :2], cache)
    _, drafted = ar_step(net, params, np.full((4, 3), 33), cache)
    back = dataclasses.replace(drafted, length=cache.length)
    again, _ = ar_step(net, params, batch.target[:, 2:4], back)
    expected, _ = ar_step(net, params, batch.target[:, 2:4], cache)
    np.testing.assert_allclose(again, expected, atol=2e-6)


def test_rows_of_a_sentence_share_its_encoding():
    net, params = tiny.model()
    batch = tiny.batch(rows=2)
    encoded = encode(net, params, batch.source)
    tokens = np.array([[0, 9], [0, 8], [0, 7], [0, 6]])
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), jax.device_get(encoded))
    np.testing.assert_allclose(nar_rows(net, params, encoded, tokens), nar_rows(net, params, twice, tokens), atol=2e-6)


@pytest.mark.parametrize("steps", [(1, 1, 1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("per_hypothesis", [False, True])
@pytest.mark.parametrize(("stream", "shared"), [("query", True), ("content", True), ("content", False)])
def test_reordered_hypotheses_go_on_from_their_own_tokens(stream, shared, per_hypothesis, steps):
    net, params = tiny.model(ar_stream=stream)
    batch = tiny.batch(rows=2)
    encoded, cache = start(net, params, batch.source, 3, 8, reordered=shared)
    assert (cache.ancestors is not None) == shared
    if per_hypothesis:
        cache = net.rewind_cache(cache, np.zeros(6, np.int32))
    rng = np.random.default_rng(0)
    histories = np.zeros((6, 0), np.int32)
    for new in steps:
        tokens = rng.integers(5, tiny.VOCAB, (6, new))
        order = np.concatenate(
            [rng.integers(0, 3, 3), 3 + rng.integers(0, 3, 3)]
        )  # some are dropped, some continue twice
        rows, cache = ar_step_reordered(net, params, tokens, cache, order)
        histories = np.concatenate([histories, tokens], axis=1)
        length = histories.shape[1]
        filled = np.pad(
            histories, ((0, 0), (0, 8 - length)), constant_values=5
        )  # one width: rows see what is before them
        expected = np.asarray(ar_rows(net, params, encoded, filled))[:, length - new : length]
        np.testing.assert_allclose(rows, expected, atol=5e-6)
        histories = histories[order]
        if per_hypothesis and new > 1:  # the last token is rejected; the sentence's hypotheses have the same length
            histories = histories[:, :-1]
            cache = net.rewind_cache(cache, np.full(6, histories.shape[1], np.int32))


@pytest.mark.parametrize("remat", ["full", further("dots")])
def test_rematerialisation_changes_no_gradient(remat):
    batch = tiny.batch()
    net, params = tiny.model()
    other = tiny.net(remat=remat)
    a, b = jax.device_get((gradient(net, params, batch), gradient(other, params, batch)))
    bound = max(np.abs(x).max() for x in jax.tree.leaves(a))
    assert tiny.largest_difference(a, b) < 1e-5 * bound


def test_initialisation_is_the_released_one():
    net = Janus(ModelConfig(vocab_size=1000, d_model=64, heads=4, encoder_layers=1, decoder_layers=1), Specials())
    params = jax.device_get(jax.jit(net.init)(jax.random.key(0)))
    embedding = params["embed_tokens"]["embedding"]
    assert embedding.shape == (padded_vocab(net.config), 64) == (1024, 64)
    assert float(np.abs(embedding[1000:]).max()) == 0.0
    assert abs(float(embedding[:1000].std()) - 0.02) < 1e-3
    assert float(np.abs(embedding[1]).max()) > 0  # the embedding's padding row is trained
    positions = params["decoder"]["embed_positions"]["embedding"]
    assert float(np.abs(positions[:2]).max()) == 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "bias":
            assert float(np.abs(leaf).max()) == 0.0
        elif path[-1].key == "kernel":
            assert abs(float(leaf.std()) - 0.02) < 2e-3


def test_dropout_needs_a_key_keeps_the_mean_and_depends_on_the_key():
    net, params = tiny.model(dropout=0.3)
    source = tiny.batch().source
    still = encode(net, params, source).states
    np.testing.assert_array_equal(still, encode(net, params, source).states)
    a, b = (encode(net, params, source, jax.random.key(i)).states for i in (1, 2))
    assert tiny.largest_difference(a, b) > 0.1
    from janus_jax.model.layers import Dropout

    ones = np.ones((400, 333), np.float32)
    dropped = np.asarray(jax.jit(lambda key: Dropout(0.3).apply({}, ones, rngs={"dropout": key}))(jax.random.key(0)))
    assert abs(float((dropped == 0).mean()) - 0.3) < 0.005
    assert abs(float(dropped.mean()) - 1.0) < 0.01


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("dropout", 3 + 5),  # inputs (of query and content rows in the decoder), attentions and feed-forward block
        ("activation_dropout", 1 + 1),
        ("attention_dropout", 1 + 2),
    ],
)
def test_each_dropout_acts_in_encoder_and_decoder_with_a_key_alone(name, places, monkeypatch):
    @partial(jax.jit, static_argnums=0)
    def states_and_rows(net, params, encoded, key=None):
        rows = net.train_rows(params, encoded, batch, key, families=("ar",))
        return net.encode(params, batch.source, key).states, rows["ar"]

    draws, draw = [], layers._half_words
    monkeypatch.setattr(layers, "_half_words", lambda key, shape: draws.append(shape) or draw(key, shape))
    sizes, batch = {"encoder_layers": 1, "decoder_layers": 1}, tiny.batch()
    (plain, params), dropping = tiny.model(**sizes), tiny.net(**sizes, **{name: 0.5})
    encoded = tiny.encode(plain, params, batch.source)
    without, expected = (states_and_rows.lower(net, params, encoded).as_text() for net in (dropping, plain))
    assert without == expected  # the same program
    keys = jax.random.split(jax.random.key(0))
    for one, other in zip(*(states_and_rows(dropping, params, encoded, key) for key in keys), strict=True):
        assert tiny.largest_difference(one, other) > 0.01
    assert len(draws) == places


def test_bfloat16_stays_near_float32_with_float32_parameters_and_logits():
    net, params = tiny.model()
    half = tiny.net(dtype="bfloat16")
    batch = tiny.batch()
    rows = run(half, params, batch)["ar"]
    assert rows.dtype == jnp.bfloat16
    logits = tiny.project(half, params, rows)
    assert logits.dtype == jnp.float32
    whole = tiny.project(net, params, run(net, params, batch)["ar"])
    assert np.abs(np.asarray(logits) - np.asarray(whole))[..., : tiny.VOCAB].max() < 0.1


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 5), (2, 1, 3), (8,), (9,)])
def test_logits_of_few_and_of_many_rows_are_the_product_with_the_table(shape):
    net, params = tiny.model()
    rng = np.random.default_rng(0)
    rows, weights = (rng.normal(size=(*shape, width)).astype(np.float32) for width in (16, tiny.VOCAB))
    table = params["embed_tokens"]["embedding"][: tiny.VOCAB]
    expected = rows @ table.T
    logits = tiny.project(net, params, rows)
    assert logits.shape == (*shape, padded_vocab(net.config))
    np.testing.assert_allclose(logits[..., : tiny.VOCAB], expected, atol=1e-5)
    gradient = jax.grad(lambda rows: (weights * tiny.project(net, params, rows)[..., : tiny.VOCAB]).sum())(rows)
    np.testing.assert_allclose(gradient, weights @ table, atol=1e-5)


def test_a_vocabulary_too_small_for_the_special_tokens_is_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        Janus(ModelConfig(vocab_size=4), Specials())


@pytest.mark.parametrize(
    "variant", [{}, {"norm": "pre"}, {"layernorm_embedding": True, "nar_layernorm_embedding": False}]
)
@pytest.mark.parametrize("step", [1, 2, 6])
def test_gaps_filled_step_by_step_equal_the_joint_pass(variant, step):
    net, params = tiny.model(**variant)
    batch = tiny.batch(rows=5, seed=4)
    joint = jax.device_get(run(net, params, batch, families=("nar", "aux")))
    rank = np.arange(batch.masked.shape[1])
    real = rank < np.asarray(batch.masked_count)[:, None]
    tokens = np.array(batch.target)
    rows = np.arange(len(tokens))[:, None]
    gold = tokens[rows, np.asarray(batch.masked)]
    tokens[np.nonzero(real)[0], np.asarray(batch.masked)[real]] = net.specials.mask
    hidden, cache = init_gaps(net, params, batch.source, tokens, rank.size)
    np.testing.assert_allclose(np.asarray(hidden)[real], joint["nar"][real], atol=2e-5)
    # No row attends to the first input token. The gold tokens follow it.
    inputs = np.concatenate([np.full((len(tokens), 1), net.specials.bos), gold], axis=1)
    parts = []
    for first in range(0, rank.size + 1, step):
        part, cache = aux_step(net, params, inputs[:, first : first + step], cache)
        parts.append(part)
    aux = np.concatenate(parts, axis=1)[:, : rank.size]
    np.testing.assert_allclose(aux[real], joint["aux"][real], atol=2e-5)
    assert np.abs(joint["aux"][real]).max() > 0.1
