"""The losses: formulas, and independence of chunks, padding and micro-batches."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import LossWeights, ObjectiveConfig, StopGradients, objective_terms
from janus_jax.model import project
from janus_jax.model.families import with_attended
from janus_jax.objective.aligned import NO_TOKEN, aligned_sets
from janus_jax.objective.joint import active_terms, batch_divisors, loss, weight_at
from janus_jax.objective.terms import OBJECTIVES, divisor_of, own_term, read_families
from janus_jax.objective.token_losses import TokenLosses, label_smoothed, length_nll, nll_and_smoothing, symmetric_kl
from tests import tiny
from tests.further import further

ZERO = jnp.int32(0)
ROW_TERMS = ("ar", "nar", "aux", "kl_ar_nar", "kl_nar_aux", "kl_ar_aux")


def loss_of(net, params, batch, objective, step=ZERO, rng=None):
    divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
    return loss(net, objective, params, batch, divisors=divisors, step=step, rng=rng)


value_and_grad = jax.jit(jax.value_and_grad(loss_of, argnums=1, has_aux=True), static_argnums=(0, 3))


def metrics_of(net, shapes, objective):
    """Names of the metrics that the loss computes."""
    return set(jax.eval_shape(lambda p, batch: loss_of(net, p, batch, objective)[1], shapes, tiny.batch()))


def assert_same(a, b):
    ((value, metrics), gradients), ((other, other_metrics), other_gradients) = jax.device_get((a, b))
    np.testing.assert_allclose(value, other, rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-4, atol=1e-7)
    bound = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradients))
    assert tiny.largest_difference(gradients, other_gradients) <= 1e-4 * bound + 1e-6


def test_label_smoothing_follows_the_formula():
    rng = np.random.default_rng(0)
    logits = np.full((3, 8), -1e9, np.float32)
    logits[:, :6] = rng.normal(size=(3, 6))
    labels = np.array([0, 5, 2])
    logp = logits[:, :6] - np.log(np.exp(logits[:, :6]).sum(1, keepdims=True))
    nll, smoothing = jax.device_get(jax.jit(nll_and_smoothing, static_argnums=2)(logits, labels, 6))
    np.testing.assert_allclose(nll, -logp[np.arange(3), labels], rtol=1e-6)
    expected = 0.9 * -logp[np.arange(3), labels] - 0.1 * logp.mean(1)
    np.testing.assert_allclose(label_smoothed(nll, smoothing, 0.1), expected, rtol=1e-6)


def test_symmetric_kl_follows_the_formula_and_ignores_vocabulary_padding():
    rng = np.random.default_rng(1)
    p_logits, q_logits = (np.concatenate([rng.normal(size=(4, 6)), np.full((4, 2), -1e9)], 1) for _ in range(2))
    p, q = (np.exp(x[:, :6]) / np.exp(x[:, :6]).sum(1, keepdims=True) for x in (p_logits, q_logits))
    expected = 0.5 * ((p - q) * (np.log(p) - np.log(q))).sum(1)
    np.testing.assert_allclose(jax.jit(symmetric_kl)(p_logits, q_logits), expected, rtol=1e-5)


def test_length_loss_caps_the_class():
    logits = np.log([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    np.testing.assert_allclose(jax.jit(length_nll)(logits, np.array([99, 1])), -np.log([0.7, 0.25]), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("ar", ("ar",)),
        ("cmlm", ("nar",)),
        ("janus", ("ar", "nar", "aux")),
        ("ctc", ("ctc",)),
        ("janus_ctc", ("ar", "ctc")),
        ("janus_all", ("ar", "ctc", "nar", "aux")),
        ("dag", ("dag",)),
        ("janus_dag", ("ar", "dag")),
    ],
)
def test_an_objective_computes_only_the_families_that_it_reads(name, families):
    objective = ObjectiveConfig(name=name)
    assert with_attended(read_families(objective_terms(objective))) == families
    ratios = {f"{name}_ratio": 1.5 for name in ("ctc", "dag") if name in families}
    metrics = metrics_of(*tiny.abstract(**ratios), objective)
    assert {m for m in metrics if m.startswith("nll/")} == {f"nll/{family}" for family in families}


def test_without_aux_terms_no_aux_row_is_computed():
    weights = LossWeights(aux=0.0, kl_ar_aux=0.0, kl_nar_aux=0.0)
    metrics = metrics_of(*tiny.abstract(), ObjectiveConfig(weights=weights))
    assert "nll/aux" not in metrics
    assert "nll/nar" in metrics


@pytest.mark.parametrize("chunk", [further(1), 7, further(60)])
def test_chunks_of_the_projection_change_nothing(chunk):
    net, params = tiny.model()
    batch = tiny.batch(rows=6)
    whole = value_and_grad(net, params, batch, ObjectiveConfig())
    assert_same(whole, value_and_grad(net, params, batch, ObjectiveConfig(projection_rows=chunk)))


def reference_losses(net, objective, hidden, table, batch, weights, divisors):
    """The token losses by the formulas of docs/method.md, over whole arrays."""
    logits = {n: project(hidden[n], table, net.config, net.dtype) for n in ("ar", "nar", "aux")}
    is_masked = jnp.arange(batch.masked.shape[1]) < batch.masked_count[:, None]
    labels = {"ar": batch.target[:, 1:]} | dict.fromkeys(
        ("nar", "aux"), jnp.take_along_axis(batch.target, batch.masked, axis=1)
    )
    total = 0.0
    for name in logits:
        real = labels[name] != net.specials.pad if name == "ar" else is_masked
        nll, smoothing = nll_and_smoothing(logits[name], labels[name], net.config.vocab_size)
        rows = label_smoothed(nll, smoothing, objective.label_smoothing)
        total += weights[name] * jnp.where(real, rows, 0.0).sum() / divisors["ar" if name == "ar" else "masked"]
    logits["ar"] = jnp.take_along_axis(logits["ar"], jnp.maximum(batch.masked - 1, 0)[:, :, None], axis=1)
    for term in ("kl_ar_nar", "kl_nar_aux", "kl_ar_aux"):
        p, q = term.split("_")[1:]
        rows = symmetric_kl(logits[p], logits[q])
        total += weights[term] * jnp.where(is_masked, rows, 0.0).sum() / divisors["masked"]
    return total


def losses_of_sets(net, objective, hidden, table, batch, weights, divisors):
    losses = TokenLosses(net.config, objective, net.dtype, ROW_TERMS)
    return losses(aligned_sets(hidden, batch, net.config, 1), table, weights, divisors)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def three_times(losses, net, objective, hidden, table, *rest):
    """Three times the value of the losses, and its gradients by hidden rows and table."""
    return jax.value_and_grad(lambda h, t: 3.0 * losses(net, objective, h, t, *rest), argnums=(0, 1))(hidden, table)


@pytest.mark.parametrize("chunk", [0, 5])
def test_value_and_gradients_equal_plain_differentiation_of_the_formulas(chunk):
    net, params = tiny.model()
    batch, objective = tiny.batch(), ObjectiveConfig()
    hidden = tiny.joint_rows(net, params, batch, ("ar", "nar", "aux"))
    weights = {name: np.float32(0.3 + i) for i, name in enumerate(ROW_TERMS)}
    inputs = hidden, params["embed_tokens"]["embedding"], batch, weights, tiny.divisors(net, objective, batch)
    value, ours = three_times(losses_of_sets, net, dataclasses.replace(objective, projection_rows=chunk), *inputs)
    expected, plain = three_times(reference_losses, net, objective, *inputs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert tiny.largest_difference(ours, plain) < 1e-5


def test_no_array_has_all_rows_times_the_vocabulary():
    net, shapes = tiny.abstract(vocab_size=999)
    batch = tiny.batch(rows=8)

    def widest(projection_rows):
        """Rows of the largest array of vocabulary width in the program before compilation."""
        objective = ObjectiveConfig(projection_rows=projection_rows)
        text = value_and_grad.lower(net, shapes, batch, objective).as_text()
        return max(int(rows) for rows in re.findall(r"tensor<(\d+)x1008xf32>", text))

    assert widest(0) >= 8 * 5
    assert widest(16) <= 16


def test_padding_changes_no_loss_and_no_gradient():
    net, params = tiny.model()
    batch = tiny.batch(rows=6)
    wider = tiny.padded(batch, source=2, target=3, masked=2, rows=4)
    assert_same(
        value_and_grad(net, params, batch, ObjectiveConfig()), value_and_grad(net, params, wider, ObjectiveConfig())
    )


def test_stop_gradient_holds_one_side_of_a_kl_fixed():
    only = LossWeights(ar=0.0, nar=0.0, aux=0.0, length=0.0, kl_ar_nar=1.0, kl_nar_aux=0.0, kl_ar_aux=0.0)
    net, params = tiny.model()
    batch = tiny.batch()
    gradients = {}
    for side in ("none", "ar", "nar"):
        objective = ObjectiveConfig(weights=only, stop_gradient=StopGradients(kl_ar_nar=side))
        (value, _), gradients[side] = jax.device_get(value_and_grad(net, params, batch, objective))
        assert float(value) > 0
    # The gradient is linear in its two sides.
    both = jax.tree.map(np.add, gradients["ar"], gradients["nar"])
    # Table and decoder rows of both sides add up to the gradient without any stop.
    bound = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradients["none"]))
    assert tiny.largest_difference(both, gradients["none"]) < 1e-4 * bound + 1e-7
    assert tiny.largest_difference(gradients["ar"], gradients["none"]) > 0.01 * bound


@pytest.mark.parametrize(
    ("name", "stops", "fixed", "taught"),
    [
        ("kl_ar_nar", {"kl_ar_nar": "ar"}, "ar", "nar"),
        ("kl_ar_nar", {"kl_ar_nar": "nar"}, "nar", "ar"),
        ("kl_ar_dag", {}, "ar", "dag"),  # the default
    ],
)
def test_the_fixed_side_of_a_divergence_gets_no_gradient_and_the_other_does(name, stops, fixed, taught):
    net, rng = tiny.net(), np.random.default_rng(0)
    objective = ObjectiveConfig(stop_gradient=StopGradients(**stops))
    losses = TokenLosses(net.config, objective, net.dtype, (name,))
    rows = {family: rng.normal(size=(5, 16)).astype(np.float32) for family in (fixed, taught)}
    rows = {family: rows[family] for family in sorted(rows)}  # "ar" is the first side
    labels = dict.fromkeys(rows, np.array([7, 5, 9, NO_TOKEN, 6]))
    table = rng.normal(size=(48, 16)).astype(np.float32)
    divisors = dict.fromkeys(("masked", "dag", "rows/ar", "rows/masked"), 1.0)
    gradients = jax.jit(jax.grad(lambda x: losses.of_chunk(x, labels, table, {name: 1.0}, divisors)[0]))(rows)
    assert not np.asarray(gradients[fixed]).any()
    assert np.asarray(gradients[taught]).any(axis=1).tolist() == [True, True, True, False, True]


def test_weights_are_constant_or_piecewise_linear():
    assert float(weight_at(0.3, jnp.int32(5))) == pytest.approx(0.3)
    points = ((10, 0.0), (20, 1.0))
    weights = [float(weight_at(points, jnp.int32(step))) for step in (0, 10, 15, 20, 99)]
    np.testing.assert_allclose(weights, [0.0, 0.0, 0.5, 1.0, 1.0])


def test_terms_are_active_while_their_weight_is_not_zero():
    late = ((3, 0.0), (5, 1.0))
    weights = LossWeights(nar=late, aux=late, kl_ar_nar=0.0, kl_nar_aux=late, kl_ar_aux=late, length=0.0)
    objective = ObjectiveConfig(weights=weights)
    assert [active_terms(objective, step) for step in (0, 3)] == [("ar",)] * 2
    assert active_terms(objective, 4) == active_terms(objective, 99) == ("ar", "nar", "aux", "kl_nar_aux", "kl_ar_aux")
    # If no term that reads rows has a weight, all are computed, since a step needs a loss.
    nothing = ObjectiveConfig(name="ar", weights=LossWeights(ar=late))
    assert active_terms(nothing, 0) == ("ar",)


def test_ar_terms_may_be_computed_in_some_steps_only_with_a_higher_weight():
    late = ((2, 0.0), (3, 1.0))
    weights = LossWeights(nar=late, aux=0.0, length=late, kl_ar_nar=late, kl_nar_aux=0.0, kl_ar_aux=0.0)
    objective = ObjectiveConfig(weights=weights, ar_every=3)
    with_ar, without = ("ar", "nar", "length", "kl_ar_nar"), ("nar", "length")
    # Before the others begin, AR is trained in every step.
    assert [active_terms(objective, step) for step in range(7)] == [("ar",)] * 3 + [with_ar, without, without, with_ar]
    net, params = tiny.model()
    batch = tiny.batch()
    divisors = tiny.divisors(net, objective, batch)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def total(every, terms):
        return loss(net, dataclasses.replace(objective, ar_every=every), params, batch, divisors=divisors,
                    step=jnp.int32(9), terms=terms)  # fmt: skip

    (once, metrics), (thrice, _) = jax.device_get((total(1, with_ar), total(3, with_ar)))
    added = 2 * (metrics["loss/ar"] + metrics["loss/kl_ar_nar"])
    np.testing.assert_allclose(thrice, once + added, rtol=1e-5)
    # No step leaves AR out if only AR terms read other rows.
    for terms in (without, ("ar",), ("ar", "length", "kl_ar_nar")):
        np.testing.assert_allclose(total(1, terms)[0], total(3, terms)[0], rtol=1e-6)


def test_a_scheduled_weight_acts_on_the_total():
    net, params = tiny.model()
    batch = tiny.batch()
    objective = ObjectiveConfig(name="ar", weights=LossWeights(ar=((0, 1.0), (10, 3.0))))
    (start, _), _ = value_and_grad(net, params, batch, objective, jnp.int32(0))
    (middle, _), _ = value_and_grad(net, params, batch, objective, jnp.int32(5))
    assert float(middle) == pytest.approx(2 * float(start), rel=1e-6)


def test_two_encoder_passes_differ_only_in_dropout():
    batch = tiny.batch()
    net, params = tiny.model(dropout=0.2)
    one, two = (ObjectiveConfig(encoder_passes=n) for n in (1, 2))
    value = functools.partial(jax.jit(loss_of, static_argnums=(0, 3)), net, params, batch)
    with_key = [value(objective, rng=jax.random.key(3)) for objective in (one, two)]
    assert float(with_key[0][0]) != float(with_key[1][0])
    # AR rows read the first pass, all others the second.
    once, twice = (metrics for _, metrics in with_key)
    np.testing.assert_allclose(once["loss/ar"], twice["loss/ar"], rtol=1e-6)
    for name in ("loss/nar", "loss/aux", "loss/length"):
        assert abs(float(once[name]) / float(twice[name]) - 1) > 1e-5, name
    without = [value(objective)[0] for objective in (one, two)]
    assert float(without[0]) == float(without[1])


def test_a_batch_without_masked_tokens_is_finite():
    net, params = tiny.model()
    batch = dataclasses.replace(tiny.batch(rows=6), masked_count=np.zeros(6, np.int32))
    (value, metrics), gradients = jax.device_get(value_and_grad(net, params, batch, ObjectiveConfig()))
    assert np.isfinite(float(value))
    assert float(metrics["loss/nar"]) == 0.0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("chunk", [further(0), 7])
def test_janus_all_is_the_sum_of_its_parts(chunk):
    """AR, NAR, AUX and CTC in one pass: no term is dropped, and each equals that of a smaller objective."""
    net, params = tiny.model(ctc_ratio=1.5)

    def computed(name, chunk=7):
        objective = ObjectiveConfig(name=name, projection_rows=chunk, ctc_floor=0.0)
        return jax.device_get(value_and_grad(net, params, tiny.batch(), objective))

    (of_janus, janus), janus_gradients = computed("janus")
    (of_ctc, ctc), ctc_gradients = computed("janus_ctc")
    (of_ar, _), ar_gradients = computed("ar")  # AR is in both parts
    parts = jax.tree.map(lambda a, b, c: a + b - c, janus_gradients, ctc_gradients, ar_gradients)
    (value, metrics), gradients = computed("janus_all", chunk)
    assert {name for name in metrics if name.startswith("loss/")} == {
        f"loss/{name}"
        for name in OBJECTIVES["janus_all"]
        if name != "heads"  # which has no weight by default
    }
    for name, part in (janus | ctc).items():
        assert float(metrics[name]) == pytest.approx(float(part), rel=1e-5), name
        assert float(part) > 0 or name == "ctc/unfit"
    assert float(value) == pytest.approx(float(of_janus + of_ctc - of_ar), rel=1e-5)
    bound = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradients))
    assert tiny.largest_difference(gradients, parts) <= 1e-4 * bound + 1e-6


def test_a_divergence_between_rows_that_nothing_aligns_is_refused():
    net, params = tiny.model()
    batch, objective = tiny.batch(), ObjectiveConfig()
    hidden = {"ar": tiny.joint_rows(net, params, batch, ("ar", "nar", "aux"))["ar"]}
    losses = TokenLosses(net.config, objective, net.dtype, ("ar", "kl_ar_nar"))
    sets, table = aligned_sets(hidden, batch, net.config, 1), params["embed_tokens"]["embedding"]
    with pytest.raises(ValueError, match="term kl_ar_nar: no aligned set holds the rows of both ar and nar"):
        losses(sets, table, {}, tiny.divisors(net, objective, batch))


def test_rows_that_are_aligned_with_no_token_are_refused():
    net, params = tiny.model()
    batch = tiny.batch()
    hidden = tiny.joint_rows(net, params, batch, ("ar", "nar", "aux"))
    hidden = {"ar": hidden["ar"], "unknown": hidden["nar"]}
    with pytest.raises(ValueError, match=r"no loss term .* trains the rows 'unknown'"):
        aligned_sets(hidden, batch, net.config, 1)


@pytest.mark.parametrize("name", ["janus_all", "janus_dag"])
def test_every_metric_of_a_step_has_a_divisor_and_an_unknown_name_raises(name):
    net, shapes = tiny.abstract(ctc_ratio=1.5, dag_ratio=1.5)
    objective = ObjectiveConfig(name=name)
    divisors = jax.eval_shape(
        functools.partial(batch_divisors, config=net.config, objective=objective, pad=1), tiny.batch()
    )
    assert {divisor_of(name) for name in metrics_of(net, shapes, objective)} <= set(divisors)
    for wrong in ("loss/graph", "nll/graph", "ctc/fit", "dag"):
        with pytest.raises(ValueError, match=r"objective/terms\.py"):
            divisor_of(wrong)
    assert [own_term(family) for family in ("ar", "nar", "aux", "ctc", "dag")] == ["ar", "nar", "aux", "ctc", "dag"]
