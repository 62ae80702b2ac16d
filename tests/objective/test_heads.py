"""The loss of draft heads against its definition, and what does not learn from it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import ConfigError, LossWeights, ObjectiveConfig, resolve
from janus_jax.objective.joint import batch_divisors, loss
from janus_jax.types import Encoded
from tests import tiny

HEADS = 3


def model(**changes):
    """A model with draft heads whose kernels are not zero, and its parameters in NumPy arrays."""
    # With these weights some of the likeliest tokens are rare, and some drafts are accepted.
    params, noise = _initial(), np.random.default_rng(5)
    moved = jax.tree.map(
        lambda x: x + np.float32(0.05) * noise.normal(size=x.shape).astype(x.dtype), params["draft_heads"]
    )
    return tiny.net(draft_heads=HEADS, **changes), params | {"draft_heads": moved}


def encoded_of(rng, lengths, slots=4):
    """Encoder states of sources with so many real tokens."""
    states = rng.normal(size=(len(lengths), slots, 16)).astype(np.float32)
    return Encoded(states, np.arange(slots) < np.array(lengths)[:, None], np.zeros((len(lengths), 1), np.float32))


@functools.cache
def _initial():
    leaves, structure = jax.tree.flatten(jax.device_get(jax.jit(tiny.net(draft_heads=HEADS).init)(jax.random.key(0))))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        leaf + 0.1 * np.asarray(jax.random.normal(key, leaf.shape)) if leaf.ndim == 1 else leaf
        for key, leaf in zip(keys, leaves, strict=True)
    )


def value(net, params, batch, terms=("heads",), **objective):
    return _value(net, params, batch, terms, ObjectiveConfig(name="ar", weights=LossWeights(heads=1.0), **objective))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _value(net, params, batch, terms, objective):
    divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
    return loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(0), terms=terms)


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients_of(net, params, batch, terms):
    return jax.grad(lambda p: value(net, p, batch, terms)[0])(params)


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize(
    "variant", [{}, {"ar_stream": "content", "ar_start": "eos", "scale_embedding": False}, {"draft_vocab": 20}]
)
def test_the_loss_is_that_of_its_definition(variant, chunk):
    net, params = model(**variant)
    batch = tiny.batch()
    total, metrics = value(net, params, batch, projection_rows=chunk)
    rows = np.asarray(tiny.joint_rows(net, params, batch, ("ar",))["ar"])
    rows = rows[:, 1:] if net.config.ar_start == "eos" else rows  # the rows behind bos
    encoded = net.encode(params, batch.source)
    states = [row[real] for row, real in zip(np.asarray(encoded.states), np.asarray(encoded.mask), strict=True)]
    assert len({len(row) for row in states}) > 1, "some sources must be padded"
    target = np.asarray(batch.target)
    table = params["embed_tokens"]["embedding"][: tiny.VOCAB]
    frequent = table[:32] if net.config.draft_vocab else table  # 20 is rounded up to a multiple of 16
    scale = 4.0 if net.config.scale_embedding else 1.0  # sqrt(16)
    summed, accepted, count, rare = 0.0, 0, 0, 0
    for sentence in range(len(target)):
        real = int((target[sentence] != net.specials.pad).sum())
        count += real - 1
        for slot in range(real):
            row, run = rows[sentence, slot - 1] if slot else params["draft_heads"]["start"]["embedding"][0], True
            for distance in range(1, HEADS + 1):
                if slot + distance >= real:
                    break
                head = params["draft_heads"]
                read = np.concatenate([row, scale * table[target[sentence, slot + distance - 1]]])
                query = read @ head["query"]["kernel"] @ head["key"]["kernel"] / 4.0  # sqrt(16)
                weights = np.exp(states[sentence] @ query)
                context = weights @ states[sentence] / weights.sum()
                inner = np.concatenate([read, context]) @ head["inner"]["kernel"] + head["inner"]["bias"]
                row = row + inner / (1 + np.exp(-inner)) @ head["outer"]["kernel"]
                logits = row @ frequent.T
                label = (rows[sentence, slot + distance - 1] @ table.T).argmax()
                if label >= len(frequent):
                    rare, run = rare + 1, False
                    continue
                summed += 0.8 ** (distance - 1) * (np.log(np.exp(logits).sum()) - logits[label])
                run = run and logits.argmax() == label
                accepted += run
    np.testing.assert_allclose(metrics["loss/heads"], summed / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["heads/accepted"], accepted / count, rtol=1e-6)
    np.testing.assert_allclose(total, metrics["loss/heads"], rtol=1e-6)
    assert accepted > 0, "the test must see accepted tokens"
    assert (rare > 0) == (len(frequent) < len(table)), "and labels that no head can choose"


def test_only_the_heads_learn_from_it():
    net, params = model()
    heads, both, alone = (
        jax.device_get(gradients_of(net, params, tiny.batch(), terms))
        for terms in (("heads",), ("ar", "heads"), ("ar",))
    )
    for name, part in heads.items():
        norm = sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(part))
        assert (norm > 0) == (name == "draft_heads"), name
    # Beside AR's loss, the other parameters learn as without heads.
    for name in set(params) - {"draft_heads"}:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both[name], alone[name])


def test_the_rows_of_known_tokens_are_those_of_single_steps():
    net, params = model()
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 5, 16)).astype(np.float32)
    tokens = rng.integers(5, tiny.VOCAB, (2, 6))
    source = encoded_of(rng, [4, 2])
    made, step = np.array(jax.jit(net.draft_rows)(params, source, rows, tokens)), jax.jit(net.draft_step)
    assert made.shape == (2, 6, HEADS, 16)
    for slot, row in ((0, net.draft_start(params, 2)), (2, rows[:, 1])):
        for distance in range(1, HEADS + 1):
            row = step(params, source, row, tokens[:, slot + distance - 1])
            np.testing.assert_allclose(made[:, slot, distance - 1], row, atol=1e-6)


def test_more_heads_than_tokens_change_nothing_before_the_last_token():
    net, params = tiny.model(draft_heads=8)
    params["draft_heads"]["outer"]["kernel"] = jnp.full((32, 16), 0.01)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 9, 16)).astype(np.float32)
    tokens = rng.integers(5, tiny.VOCAB, (2, 10))
    source = encoded_of(rng, [3, 4])
    long, short = (jax.jit(net.draft_rows)(params, source, rows[:, :n], tokens[:, : n + 1]) for n in (9, 1))
    assert short.shape == (2, 2, 8, 16)
    np.testing.assert_allclose(short[:, 0, :2], long[:, 0, :2], atol=1e-6)  # the others predict tokens behind the last
    batch = tiny.batch(target=4)
    (total, metrics), (padded, _) = (value(net, params, one) for one in (batch, tiny.padded(batch, target=8)))
    assert metrics["loss/heads"] > 0
    np.testing.assert_allclose(total, padded, rtol=1e-6)


def test_heads_that_start_at_zero_do_not_move_a_row():
    net, params = tiny.model(draft_heads=HEADS)  # its kernels are those of `init`
    fresh = params["draft_heads"]
    assert not np.asarray(fresh["outer"]["kernel"]).any()
    assert np.asarray(fresh["inner"]["kernel"]).any()
    rows = np.ones((1, 16), np.float32)
    source = encoded_of(np.random.default_rng(0), [3])
    np.testing.assert_array_equal(jax.jit(net.draft_step)(params, source, rows, np.array([7])), rows)


def test_padding_of_a_source_changes_no_row():
    net, params = model()
    rng = np.random.default_rng(0)
    rows, tokens = rng.normal(size=(2, 16)).astype(np.float32), np.array([6, 7])
    source, step = encoded_of(rng, [3, 2], slots=4), jax.jit(net.draft_step)
    other = dataclasses.replace(source, states=np.where(source.mask[..., None], source.states, np.float32(9.0)))
    wide = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 2), (0, 0)][: x.ndim]), (source.states, source.mask))
    expected = step(params, source, rows, tokens)
    np.testing.assert_array_equal(step(params, other, rows, tokens), expected)
    wider = dataclasses.replace(source, states=wide[0], mask=wide[1])
    np.testing.assert_allclose(step(params, wider, rows, tokens), expected, atol=1e-6)
    real = np.where(source.mask[..., None], np.float32(9.0), source.states)
    changed = step(params, dataclasses.replace(source, states=real), rows, tokens)
    assert np.abs(np.asarray(changed - expected)).max(axis=1).min() > 1e-3, "each row reads its source"


def test_a_weight_without_heads_is_refused():
    with pytest.raises(ConfigError, match=r"config.model.draft_heads: 0, but objective.weights.heads has a weight"):
        resolve({"objective": {"name": "ar", "weights": {"heads": 1.0}}})
    settings = resolve({"objective": {"name": "ar", "weights": {"heads": 1.0}}, "model": {"draft_heads": 2}})
    assert dataclasses.asdict(settings)["model"]["draft_heads"] == 2
