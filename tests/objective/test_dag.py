"""DAG rows against enumeration of all paths, finite differences and formulas written out."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import Config, ObjectiveConfig, OptimizerConfig, TrainConfig
from janus_jax.model.attention import NEGATIVE
from janus_jax.model.families import source_group
from janus_jax.objective import dag
from janus_jax.objective.joint import batch_divisors, loss
from janus_jax.train.step import make_train_step, state_from_params
from tests import tiny

BOS, PAD, EOS, MASK = 0, 1, 2, 4
OBJECTIVE = ObjectiveConfig(name="janus_dag")
# (vertices, tokens) of each sentence; the fourth target is too long, the fifth sentence is empty.
SHAPES = ((7, 4), (5, 5), (6, 2), (3, 4), (0, 0), (7, 5))


def random_graph(seed=0, spread=2.0):
    """A graph [6, 7, 7] with emissions [6, 5, 7] for the sentences of SHAPES, and its labels."""
    rng = np.random.default_rng(seed)
    counts, lengths = np.transpose(SHAPES)
    rows, real = np.arange(7) < counts[:, None], np.arange(5) < lengths[:, None]
    exists = np.triu(np.ones((7, 7), bool), 1) & rows[:, None] & rows[:, :, None]
    scores = jnp.where(exists, spread * rng.normal(size=exists.shape), NEGATIVE)
    links = jnp.where(exists, jax.nn.log_softmax(scores, axis=-1), NEGATIVE)
    emissions = -spread * rng.exponential(size=(6, 5, 7))
    fits = (lengths > 1) & (lengths <= counts)
    tokens = rng.integers(5, tiny.VOCAB, size=(6, 5))
    labels = dag.Labels(*map(jnp.asarray, (tokens, real, rows, fits)))
    return dag.Graph(links.astype(jnp.float32), jnp.asarray(emissions, jnp.float32)), labels


def paths_of(count, length):
    """All paths of so many tokens through so many vertices: the first and the last vertex, and some between them."""
    return [(0, *inner, count - 1) for inner in itertools.combinations(range(1, count - 1), length - 2)]


def path_scores(links, emissions, count, length):
    """The log-probability of each of `paths_of`; links [R, R], emissions [T, R]."""
    return [
        sum(emissions[i, j] for i, j in enumerate(path)) + sum(links[a, b] for a, b in itertools.pairwise(path))
        for path in paths_of(count, length)
    ]


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_likelihood_and_best_path_are_those_of_all_paths(spread):
    graph, labels = random_graph(1, spread)
    nll, has_path = jax.jit(dag.negative_log_likelihood)(graph, labels)
    best = np.array(jax.jit(dag.best_path)(graph, labels))
    links, emissions = np.array(graph.links, np.float64), np.array(graph.emissions, np.float64)
    assert has_path.tolist() == labels.fits.tolist() == [True, True, True, False, False, True]
    for row, (count, length) in enumerate(SHAPES):
        if not labels.fits[row]:
            assert nll[row] == 0.0
            continue
        scores = path_scores(links[row], emissions[row], count, length)
        np.testing.assert_allclose(nll[row], -np.logaddexp.reduce(scores), rtol=1e-5)
        assert tuple(best[row, :length]) == paths_of(count, length)[int(np.argmax(scores))]


def test_gradients_are_finite_differences_of_the_sum_over_paths():
    graph, labels = random_graph(2, 1.0)
    ours = jax.jit(jax.grad(lambda graph: dag.negative_log_likelihood(graph, labels)[0].sum()))(graph)
    for name in ("links", "emissions"):
        arrays = {"links": np.array(graph.links, np.float64), "emissions": np.array(graph.emissions, np.float64)}
        expected = np.zeros(arrays[name].shape)
        for place in np.ndindex(expected.shape):
            row = place[0]
            if not labels.fits[row] or arrays[name][place] < NEGATIVE / 2:
                continue
            values = []
            for change in (1e-4, -1e-4):
                arrays[name][place] += change
                scores = path_scores(arrays["links"][row], arrays["emissions"][row], *SHAPES[row])
                values.append(-np.logaddexp.reduce(scores))
                arrays[name][place] -= change
            expected[place] = (values[0] - values[1]) / 2e-4
        np.testing.assert_allclose(getattr(ours, name), expected, atol=1e-5)


def test_extreme_probabilities_leave_values_and_gradients_finite():
    graph, labels = random_graph(3, 1.0)
    # The second sentence has as many tokens as vertices: its only path takes the least likely links.
    steep = graph.links.at[:, 0, 1].add(-300.0).at[:, 1, 2].add(-150.0)
    of_steep, of_graph = (
        dag.negative_log_likelihood(dag.Graph(x, graph.emissions), labels)[0][1] for x in (steep, graph.links)
    )
    np.testing.assert_allclose(of_steep, of_graph + 450.0, rtol=1e-6)
    for links in (graph.links * 200.0, steep):
        changed = dataclasses.replace(graph, links=jnp.maximum(links, NEGATIVE))
        value, gradient = jax.value_and_grad(lambda g: dag.negative_log_likelihood(g, labels)[0].sum())(changed)
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((value, gradient)))
        assert value < 1e6


def test_a_path_that_cannot_end_in_time_does_not_hide_the_others():
    # Four tokens and four vertices: the second token stands at vertex 1, to which the link is unlikely.
    links = np.full((1, 4, 4), NEGATIVE, np.float32)
    links[0, 0, 1:], links[0, 1, 2:], links[0, 2, 3] = (-120.0, -0.7, -0.7), -0.7, 0.0
    labels = dag.Labels(jnp.array([[0, 7, 8, 2]]), jnp.ones((1, 4), bool), jnp.ones((1, 4), bool), jnp.array([True]))
    graph = dag.Graph(jnp.asarray(links), jnp.zeros((1, 4, 4)))
    np.testing.assert_allclose(dag.negative_log_likelihood(graph, labels)[0], [120.7], rtol=1e-6)
    assert dag.best_path(graph, labels).tolist() == [[0, 1, 2, 3]]


def test_a_target_whose_paths_all_vanish_weighs_nothing():
    links = np.full((1, 5, 5), NEGATIVE, np.float32)
    # Four tokens and five vertices; the likely link leads to vertex 2, from which no path of four tokens goes on.
    links[0, 0, 1:3], links[0, 1, 2:], links[0, 2, 4], links[0, 3, 4] = (-400.0, 0.0), -1.1, 0.0, 0.0
    labels = dag.Labels(jnp.array([[0, 7, 8, 2]]), jnp.ones((1, 4), bool), jnp.ones((1, 5), bool), jnp.array([True]))
    graph = dag.Graph(jnp.asarray(links), jnp.zeros((1, 4, 5)))
    (value, has_path), gradient = jax.value_and_grad(
        lambda g: jax.tree.map(jnp.sum, dag.negative_log_likelihood(g, labels)), has_aux=True
    )(graph)
    assert (float(value), bool(has_path)) == (0.0, False)
    assert not any(bool(x.any()) for x in jax.tree.leaves(gradient))


def test_usage_is_that_of_all_paths():
    graph, labels = random_graph(4, 1.5)
    usage = jax.jit(dag.usage)(graph.links, labels.rows)
    links = np.array(graph.links, np.float64)
    for row, (count, _) in enumerate(SHAPES):
        if not count:
            assert all(float(values[row]) == 0.0 for values in usage.values())
            continue
        visits, entropy, steps = np.zeros(count), 0.0, 0.0
        for path in (path for length in range(2, count + 1) for path in paths_of(count, length)):
            chance = np.exp(sum(links[row, a, b] for a, b in itertools.pairwise(path)))
            visits[list(path)] += chance
            steps += chance * (len(path) - 1)
            for at in path[:-1]:
                out = np.exp(links[row, at, at + 1 : count])
                entropy -= chance * (out * np.log(out)).sum()
        np.testing.assert_allclose(visits[[0, -1]], 1.0, rtol=1e-6)
        np.testing.assert_allclose(usage["dag/visits"][row], visits.mean(), rtol=1e-5)
        np.testing.assert_allclose(usage["dag/dead"][row], (visits < dag.DEAD).mean())
        np.testing.assert_allclose(usage["dag/entropy"][row], entropy / steps, rtol=1e-5)


def test_dead_vertices_are_counted():
    # All paths skip vertex 1 but for one in a thousand.
    chances = np.array([[0, 0.001, 0.999, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    links = jnp.where(chances > 0, jnp.log(jnp.maximum(chances, 1e-9)), NEGATIVE)[None]
    usage = dag.usage(links, jnp.ones((1, 4), bool))
    np.testing.assert_allclose(usage["dag/dead"], [0.25])
    np.testing.assert_allclose(usage["dag/visits"], [(3 + 0.001) / 4], rtol=1e-6)


@pytest.fixture(scope="module")
def small():
    """A model with 1.5 vertices a source token, a batch and its DAG rows. One target is too long."""
    net, params = tiny.model(dag_ratio=1.5, encoder_layers=1)
    batch = tiny.batch(rows=6, source=4, target=8, masked=3)
    target = np.array(batch.target)
    target[0, :5] = [0, 7, 7, 8, 2]
    target[0, 5:] = PAD
    target[1] = [0, 9, 9, 9, 9, 9, 9, 2]  # needs eight vertices
    target[2, :2] = [0, 2]
    target[2, 2:] = PAD
    target[3, :5] = [0, 6, 11, 6, 2]
    target[3, 5:] = PAD
    # The last two sentences keep their targets if they fit.
    batch = dataclasses.replace(batch, target=jnp.asarray(target))
    rows, real = tiny.source_rows(net, params, batch, "dag")
    return net, params, batch, rows, real


@partial(jax.jit, static_argnums=(0, 1))
def loss_of(net, objective, params, batch, rng=None):
    """The loss of a training step; without `rng` no dropout and no glancing."""
    divisors = batch_divisors(batch, net.config, objective, PAD)
    return loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(0), rng=rng)


def graph_and_labels(net, params, batch, rows, objective=OBJECTIVE):
    labels = dag.labels_of(batch.source, batch.target, net.config, PAD)
    return dag.graph_of(net, objective, params, rows, labels), labels


def test_links_are_a_mixture_of_softmaxes_over_the_vertices_behind(small):
    net, params, _, rows, real = small
    links = np.array(net.dag_links(params, rows, real))
    weights = jax.tree.map(np.array, params["decoder"]["dag_links"])
    hidden, heads, width = np.array(rows), net.config.heads, net.config.d_model // net.config.heads
    for b in range(len(hidden)):
        count = int(real[b].sum())
        positions = weights["embed_positions"]["embedding"][2 : 2 + count]
        inputs = np.concatenate([hidden[b, :count], positions], axis=1)
        queries, keys, gates = (
            inputs @ weights[name]["kernel"] + weights[name]["bias"] for name in ("q_proj", "k_proj", "gate")
        )
        gates = np.exp(gates) / np.exp(gates).sum(axis=1, keepdims=True)
        expected = np.zeros((count, count))
        for h, i in itertools.product(range(heads), range(count - 1)):
            part = slice(h * width, (h + 1) * width)
            chances = np.exp(queries[i, part] @ keys[i + 1 :, part].T / np.sqrt(width))
            expected[i, i + 1 :] += gates[i, h] * chances / chances.sum()
        np.testing.assert_allclose(np.exp(links[b, :count, :count]), expected, rtol=1e-4, atol=1e-6)
        assert (links[b, count:] == NEGATIVE).all()
        assert (links[b, :, count:] == NEGATIVE).all()
        assert (links[b, count - 1] == NEGATIVE).all()


@pytest.mark.parametrize("at_once", [0, 8])
def test_emissions_are_log_probabilities_over_the_vocabulary(small, at_once):
    net, params, batch, rows, _ = small
    graph, labels = graph_and_labels(net, params, batch, rows, dataclasses.replace(OBJECTIVE, projection_rows=at_once))
    logs = jax.nn.log_softmax(net.project(params, rows))
    expected = jnp.take_along_axis(logs, jnp.broadcast_to(labels.tokens[:, None], (*rows.shape[:2], 8)), axis=2)
    np.testing.assert_allclose(graph.emissions, jnp.swapaxes(expected, 1, 2), atol=1e-5)


def test_vertices_read_bos_masks_and_eos_and_see_the_real_ones(small):
    net, _, batch, _, real = small
    group = source_group("dag", batch.source, net.config, net.specials)
    for tokens, flags in zip(np.array(group.tokens), np.array(real), strict=True):
        count = int(flags.sum())
        assert tokens[:count].tolist() == [BOS, *[MASK] * (count - 2), EOS]
    assert group.position_table == "dag"
    np.testing.assert_array_equal(group.attends["dag"][:, 0], real)
    assert [net.config.dag_slots(length) for length in (2, 3, 4)] == [3, 5, 6]


def test_a_target_that_does_not_fit_has_no_weight_and_leaves_all_values_finite(small):
    net, params, batch, *_ = small
    gradient_of = jax.jit(jax.value_and_grad(lambda p: loss_of(net, OBJECTIVE, p, batch), has_aux=True))
    (value, metrics), gradient = gradient_of(params)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((value, metrics, gradient)))
    labels = dag.labels_of(batch.source, batch.target, net.config, PAD)
    unfit = np.flatnonzero(~np.array(labels.fits)).tolist()
    assert 1 in unfit
    assert len(unfit) <= 3
    np.testing.assert_allclose(metrics["dag/unfit"], len(unfit) / 6)
    kept = np.flatnonzero(np.array(labels.fits))
    divisors = batch_divisors(batch, net.config, OBJECTIVE, PAD)
    assert float(divisors["dag"]) == float(labels.real[kept].sum())
    alone = loss_of(net, OBJECTIVE, params, jax.tree.map(lambda x: x[kept], batch))[1]
    for name in ("loss/dag", "loss/kl_ar_dag", "nll/dag"):
        np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-5)


def test_the_loss_is_the_likelihood_by_all_paths_per_token(small):
    net, params, batch, rows, real = small
    graph, labels = graph_and_labels(net, params, batch, rows)
    links, emissions = np.array(graph.links, np.float64), np.array(graph.emissions, np.float64)
    total, tokens = 0.0, 0
    for row in np.flatnonzero(labels.fits):
        count, length = int(real[row].sum()), int(labels.real[row].sum())
        total -= np.logaddexp.reduce(path_scores(links[row], emissions[row], count, length))
        tokens += length
    np.testing.assert_allclose(loss_of(net, OBJECTIVE, params, batch)[1]["loss/dag"], total / tokens, rtol=1e-5)


def test_the_divergence_is_between_rows_that_predict_the_same_token(small):
    net, params, batch, rows, _ = small
    graph, labels = graph_and_labels(net, params, batch, rows)
    path = np.array(dag.best_path(graph, labels))
    vocab = tiny.VOCAB
    ar = np.array(net.project(params, tiny.joint_rows(net, params, batch, ("ar",))["ar"]))[..., :vocab]
    ours = np.array(net.project(params, rows))[..., :vocab]
    total = 0.0
    for row in np.flatnonzero(labels.fits):
        for position in range(1, int(labels.real[row].sum())):
            p, q = (np.array(jax.nn.softmax(x)) for x in (ar[row, position - 1], ours[row, path[row, position]]))
            total += 0.5 * ((p - q) * (np.log(p) - np.log(q))).sum()
    divisors = batch_divisors(batch, net.config, OBJECTIVE, PAD)
    metrics = loss_of(net, OBJECTIVE, params, batch)[1]
    np.testing.assert_allclose(metrics["loss/kl_ar_dag"], total / float(divisors["dag"]), rtol=1e-4)


def test_padding_changes_nothing(small):
    net, params, batch, *_ = small
    wider = tiny.padded(batch, source=3, target=2, rows=2)
    (one, metrics), (other, others) = (loss_of(net, OBJECTIVE, params, b) for b in (batch, wider))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_joint_rows_are_those_of_the_pass_alone():
    net, params = tiny.model(dag_ratio=2.0, ctc_ratio=1.5)
    batch = tiny.batch()
    alone, real = tiny.source_rows(net, params, batch, "dag")
    joint = tiny.joint_rows(net, params, batch, ("ar", "ctc", "dag", "nar", "aux"))
    without = tiny.joint_rows(net, params, batch, ("ar", "ctc", "nar", "aux"))
    np.testing.assert_allclose(joint["dag"][real], alone[real], atol=2e-5)
    for name in ("ar", "ctc", "nar", "aux"):
        np.testing.assert_allclose(joint[name], without[name], atol=2e-5)


def test_vertices_have_positions_of_their_own(small):
    net, params, batch, rows, real = small
    moved = jax.tree.map(jnp.copy, params)
    moved["decoder"]["embed_positions"]["embedding"] += 1.0
    np.testing.assert_array_equal(tiny.source_rows(net, moved, batch, "dag")[0][real], rows[real])
    table = moved["decoder"]["embed_dag_positions"]["embedding"]
    moved["decoder"]["embed_dag_positions"]["embedding"] = table + jax.random.normal(jax.random.key(1), table.shape)
    assert not np.allclose(tiny.source_rows(net, moved, batch, "dag")[0][real], rows[real], atol=1e-3)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_glancing_shows_ratio_times_the_wrong_tokens(small, ratio):
    net, params, batch, rows, real = small
    graph, labels = graph_and_labels(net, params, batch, rows)
    path = dag.best_path(graph, labels)
    table = params["embed_tokens"]["embedding"]
    shown = np.array(
        dag.glance(
            rows, table, labels, path, net.config, OBJECTIVE, ratio=ratio, dtype=net.dtype, rng=jax.random.key(0)
        )
    )
    best = np.array(net.project(params, rows)).argmax(-1)
    for row, (tokens, way) in enumerate(zip(np.array(batch.target), np.array(path), strict=True)):
        inner = range(1, int(labels.real[row].sum()) - 1) if labels.fits[row] else ()
        wrong = sum(best[row, way[i]] != tokens[i] for i in inner)
        assert (shown[row] >= 0).sum() == np.round(ratio * wrong)
        assert {(r, shown[row, r]) for r in np.flatnonzero(shown[row] >= 0)} <= {(way[i], tokens[i]) for i in inner}
    assert (shown >= 0).any() == (ratio > 0)
    assert not (shown[~np.array(real)] >= 0).any()


def test_shown_vertices_read_their_token(small):
    net, params, batch, rows, real = small
    shown = jnp.full(real.shape, -1).at[0, 2].set(9)
    other, _ = tiny.source_rows(net, params, batch, "dag", shown)
    assert not np.allclose(other[0], rows[0], atol=1e-3)
    np.testing.assert_allclose(other[2:], rows[2:], atol=1e-6)
    joint = tiny.joint_rows(net, params, batch, ("dag",), {"dag": shown})
    np.testing.assert_allclose(joint["dag"][real], other[real], atol=2e-5)


def test_glancing_changes_the_loss_and_leaves_gradients_finite(small):
    net, params, batch, *_ = small
    rng = jax.random.key(3)
    glancing = dataclasses.replace(OBJECTIVE, glancing=1.0)
    (value, _), gradient = jax.jit(jax.value_and_grad(lambda p: loss_of(net, glancing, p, batch, rng), has_aux=True))(
        params
    )
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(gradient))
    assert not np.isclose(value, loss_of(net, OBJECTIVE, params, batch, rng)[0], rtol=1e-4)


@pytest.mark.parametrize("name", ["dag", "janus_dag"])
def test_training_steps_decrease_the_loss(name):
    net, params = tiny.model(dag_ratio=2.0, encoder_layers=1)
    config = Config(
        model=net.config,
        objective=ObjectiveConfig(name=name, label_smoothing=0.0, glancing=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant"),
        train=TrainConfig(steps=20),
    )
    state, step = state_from_params(config, params), jax.jit(make_train_step(net, config))
    batch = jax.tree.map(lambda x: x[None], tiny.batch())
    values = []
    for _ in range(20):
        state, metrics = step(state, batch)
        values.append(float(metrics["loss/dag"]))
    assert values[-1] < 0.75 * values[0]
    assert {"dag/unfit", "dag/visits", "dag/dead", "dag/entropy", "nll/dag"} <= metrics.keys()
