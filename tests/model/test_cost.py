"""The operations that `model.cost` computes equal those of the program's matrix products."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import Config, LossWeights, ObjectiveConfig, TrainConfig
from janus_jax.model.cost import TRAINING, step_flops
from janus_jax.objective.joint import batch_divisors, loss
from janus_jax.objective.terms import OBJECTIVES
from tests import tiny
from tests.further import further

SHARES = ("glancing", "nar_correction")  # which ask for a first pass


def product_operations(jaxpr):
    """Multiplications and additions of all matrix products of a program; loops count once per round."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in left)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += rounds * product_operations(inner)
    return total


@pytest.mark.parametrize(
    ("name", "stream", "rank"),
    [
        # Objectives without AR rows do not read the stream.
        further(name, stream, 0) if stream == "content" and "ar" not in OBJECTIVES[name] else (name, stream, 0)
        for name in OBJECTIVES
        for stream in ("query", "content")
    ]
    + [("janus_all", "content", 16)],
)
def test_operations_of_a_step_are_counted(name, stream, rank):
    # Wide enough that the products outside the count (length head, CTC's label tokens) are small.
    net, params = tiny.abstract(
        d_model=64, ffn_dim=128, ar_stream=stream, vocab_size=256, parallel_adapter_rank=rank,
        **{f"{family}_ratio": 1.5 for family in ("ctc", "dag") if family in OBJECTIVES[name]},
    )  # fmt: skip
    objective = ObjectiveConfig(name=name)
    batch = tiny.batch(rows=4, source=10, target=9, masked=6)

    def forward(params):
        divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
        return loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(0))[0]

    counted = product_operations(jax.make_jaxpr(forward)(params).jaxpr)
    expected = step_flops(Config(model=net.config, objective=objective), 4, 10, 9, 6) / TRAINING
    assert counted == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("name", "shares", "rank"),
    [
        ("ctc", {"glancing": 0.5}, 0), ("dag", {"glancing": 0.5}, 0), ("cmlm", {"nar_correction": 0.3}, 0),
        ("janus_ctc", {"glancing": ((0, 0.0), (9, 0.5)), "encoder_passes": 2}, 16), ("ar", {"glancing": 0.5}, 0),
        further("janus_dag", {"glancing": 0.5}, 0), further("janus_all", {"glancing": 0.5, "nar_correction": 0.3}, 0),
    ],
)  # fmt: skip
def test_operations_of_a_first_pass_are_counted(name, shares, rank):
    net, params = tiny.abstract(
        d_model=64, ffn_dim=128, vocab_size=256, parallel_adapter_rank=rank,
        **{f"{family}_ratio": 1.5 for family in ("ctc", "dag") if family in OBJECTIVES[name]},
    )  # fmt: skip
    batch = tiny.batch(rows=4, source=10, target=9, masked=6)

    def counted_and_expected(**settings):
        objective = ObjectiveConfig(name=name, **settings)

        def forward(params):
            divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
            key = jax.random.key(0)
            return loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(0), rng=key)[0]

        config = Config(model=net.config, objective=objective)
        counted = product_operations(jax.make_jaxpr(forward)(params).jaxpr)
        return np.array([counted, step_flops(config, 4, 10, 9, 6)])

    more = counted_and_expected(**shares) - counted_and_expected(**shares | dict.fromkeys(SHARES, 0.0))
    assert more[0] == pytest.approx(more[1], rel=0.02)
    assert (more[1] > 0) == (name != "ar")  # which has no rows to show tokens to


@pytest.mark.parametrize(("alone", "choices", "width"), [(True, 256, 64), (False, 256, 128), (True, 96, 64)])
def test_operations_of_draft_heads_are_counted(alone, choices, width):
    shape = {"d_model": width, "ffn_dim": 128, "vocab_size": 256, "draft_heads": 3, "draft_vocab": choices}
    net, params = tiny.abstract(ar_stream="content", **shape)
    objective = ObjectiveConfig(name="ar", weights=LossWeights(heads=1.0))
    config = Config(model=net.config, objective=objective, train=TrainConfig(only="heads" if alone else ""))
    batch = tiny.batch(rows=4, source=10, target=9, masked=6)
    terms = ("heads",) if alone else ("ar", "heads")

    def total(trained, params, batch):
        divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
        values = params | trained
        return loss(net, objective, values, batch, divisors=divisors, step=jnp.int32(0), terms=terms)[0]

    trained = {"draft_heads": params["draft_heads"]} if alone else params
    counted = product_operations(jax.make_jaxpr(jax.grad(total))(trained, params, batch).jaxpr)
    # The backward pass computes the heads' logits again, which no count of useful operations holds.
    again = 2 * 4 * 8 * 3 * width * choices
    assert counted == pytest.approx(step_flops(config, 4, 10, 9, 6) + again, rel=0.04)


def test_operations_of_a_draft_head_are_counted():
    def counted_and_expected(heads, source):
        net, params = tiny.abstract(ar_stream="content", d_model=64, ffn_dim=128, vocab_size=256, draft_heads=heads)
        objective = ObjectiveConfig(name="ar", weights=LossWeights(heads=1.0))
        config = Config(model=net.config, objective=objective, train=TrainConfig(only="heads"))
        batch = tiny.batch(rows=4, source=source, target=9, masked=6)

        def total(trained, params, batch):
            divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
            values = params | trained
            return loss(net, objective, values, batch, divisors=divisors, step=jnp.int32(0), terms=("heads",))[0]

        trained = {"draft_heads": params["draft_heads"]}
        counted = product_operations(jax.make_jaxpr(jax.grad(total))(trained, params, batch).jaxpr)
        return np.array([counted, step_flops(config, 4, source, 9, 6)])

    # Of one more head; its logits are computed again.
    short, long = (counted_and_expected(3, source) - counted_and_expected(2, source) for source in (10, 60))
    again = 2 * 4 * 8 * 64 * 256
    assert short[0] - again == pytest.approx(short[1], rel=0.02)
    assert long[0] - short[0] == pytest.approx(long[1] - short[1], rel=0.1)
