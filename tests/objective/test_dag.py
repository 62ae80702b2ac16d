"""DAG rows against enumeration of all paths, finite differences and formulas written out."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from janus_jax.config import Config, ObjectiveConfig, OptimizerConfig, TrainConfig
from janus_jax.model.attention import NEGATIVE
from janus_jax.model.families import source_group
from janus_jax.objective import dag
from janus_jax.objective.joint import batch_divisors, loss
from janus_jax.train.step import make_train_step, state_from_params
from tests import tiny
from tests.further import further

BOS, PAD, EOS, MASK = 0, 1, 2, 4
OBJECTIVE = ObjectiveConfig(name="janus_dag")
# (vertices, tokens) of each sentence; the fourth target is too long, the fifth sentence is empty.
SHAPES = ((7, 4), (5, 5), (6, 2), (3, 4), (0, 0), (7, 5))


def random_graph(seed=0, spread=2.0):
    """A graph [6, 7, 7] with emissions [6, 5, 7] for the sentences of SHAPES, and its labels, in NumPy arrays."""
    rng = np.random.default_rng(seed)
    counts, lengths = np.transpose(SHAPES)
    rows, real = np.arange(7) < counts[:, None], np.arange(5) < lengths[:, None]
    exists = np.triu(np.ones((7, 7), bool), 1) & rows[:, None] & rows[:, :, None]
    scores = np.where(exists, spread * rng.normal(size=exists.shape), NEGATIVE)
    links = np.where(exists, log_softmax(scores, axis=-1), NEGATIVE)
    emissions = -spread * rng.exponential(size=(6, 5, 7))
    fits = (lengths > 1) & (lengths <= counts)
    tokens = rng.integers(5, tiny.VOCAB, size=(6, 5))
    labels = dag.Labels(tokens.astype(np.int32), real, rows, fits)
    return dag.Graph(links.astype(np.float32), emissions.astype(np.float32)), labels


def paths_of(count, length):
    """All paths of so many tokens through so many vertices: the first and the last vertex, and some between them."""
    return [(0, *inner, count - 1) for inner in itertools.combinations(range(1, count - 1), length - 2)]


def path_scores(links, emissions, count, length):
    """The log-probability of each of `paths_of`; links [R, R], emissions [T, R]."""
    return [
        sum(emissions[i, j] for i, j in enumerate(path)) + sum(links[a, b] for a, b in itertools.pairwise(path))
        for path in paths_of(count, length)
    ]


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def total_and_gradient(graph, labels):
    """The sum of the negative log-likelihoods, them and which targets have a path, and the gradient of the graph."""
    values, has_path = dag.negative_log_likelihood(graph, labels)
    return values.sum(), (values, has_path)


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_likelihood_and_best_path_are_those_of_all_paths(spread):
    graph, labels = random_graph(1, spread)
    nll, has_path = jax.device_get(jax.jit(dag.negative_log_likelihood)(graph, labels))
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
    _, ours = total_and_gradient(graph, labels)
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
    steep = graph.links.copy()
    steep[:, 0, 1] -= 300.0
    steep[:, 1, 2] -= 150.0
    of_steep, of_graph = (
        np.asarray(jax.jit(dag.negative_log_likelihood)(dag.Graph(x, graph.emissions), labels)[0])[1]
        for x in (steep, graph.links)
    )
    np.testing.assert_allclose(of_steep, of_graph + 450.0, rtol=1e-6)
    for links in (graph.links * 200.0, steep):
        changed = dataclasses.replace(graph, links=np.maximum(links, NEGATIVE))
        (value, _), gradient = jax.device_get(total_and_gradient(changed, labels))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradient)))
        assert value < 1e6


def test_a_path_that_cannot_end_in_time_does_not_hide_the_others():
    # Four tokens and four vertices: the second token stands at vertex 1, to which the link is unlikely.
    links = np.full((1, 4, 4), NEGATIVE, np.float32)
    links[0, 0, 1:], links[0, 1, 2:], links[0, 2, 3] = (-120.0, -0.7, -0.7), -0.7, 0.0
    labels = dag.Labels(np.array([[0, 7, 8, 2]]), np.ones((1, 4), bool), np.ones((1, 4), bool), np.array([True]))
    graph = dag.Graph(links, np.zeros((1, 4, 4), np.float32))
    np.testing.assert_allclose(jax.jit(dag.negative_log_likelihood)(graph, labels)[0], [120.7], rtol=1e-6)
    assert jax.jit(dag.best_path)(graph, labels).tolist() == [[0, 1, 2, 3]]


def test_a_target_whose_paths_all_vanish_weighs_nothing():
    links = np.full((1, 5, 5), NEGATIVE, np.float32)
    # Four tokens and five vertices; the likely link leads to vertex 2, from which no path of four tokens goes on.
    links[0, 0, 1:3], links[0, 1, 2:], links[0, 2, 4], links[0, 3, 4] = (-400.0, 0.0), -1.1, 0.0, 0.0
    labels = dag.Labels(np.array([[0, 7, 8, 2]]), np.ones((1, 4), bool), np.ones((1, 5), bool), np.array([True]))
    graph = dag.Graph(links, np.zeros((1, 4, 5), np.float32))
    (value, (_, has_path)), gradient = jax.device_get(total_and_gradient(graph, labels))
    assert (float(value), has_path.tolist()) == (0.0, [False])
    assert not any(x.any() for x in jax.tree.leaves(gradient))


def test_usage_is_that_of_all_paths():
    graph, labels = random_graph(4, 1.5)
    usage = jax.device_get(jax.jit(dag.usage)(graph.links, labels.rows))
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
    links = np.where(chances > 0, np.log(np.maximum(chances, 1e-9)), NEGATIVE)[None]
    usage = jax.jit(dag.usage)(links, np.ones((1, 4), bool))
    np.testing.assert_allclose(usage["dag/dead"], [0.25])
    np.testing.assert_allclose(usage["dag/visits"], [(3 + 0.001) / 4], rtol=1e-6)


@pytest.fixture(scope="module")
def small():
    """A model with 1.5 vertices a source token, a batch and its DAG rows, in NumPy arrays. One target is too long."""
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
    batch = dataclasses.replace(batch, target=target)
    rows, real = tiny.source_rows(net, params, batch, "dag")
    return (net, *jax.device_get((params, batch, rows, real)))


@partial(jax.jit, static_argnums=(0, 1))
def loss_of(net, objective, params, batch, step=0, rng=None):
    """The loss of a training step and its metrics; without `rng` no dropout and no glancing."""
    divisors = batch_divisors(batch, net.config, objective, PAD)
    return loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(step), rng=rng)


loss_and_gradient = jax.jit(jax.value_and_grad(loss_of, argnums=2, has_aux=True), static_argnums=(0, 1))


@pytest.fixture(scope="module")
def computed(small):
    """The loss of `small`, its metrics and its gradient."""
    net, params, batch, *_ = small
    return jax.device_get(loss_and_gradient(net, OBJECTIVE, params, batch))


@partial(jax.jit, static_argnums=(0, 4))
def graph_and_labels(net, params, batch, rows, objective=OBJECTIVE):
    labels = dag.labels_of(batch.source, batch.target, net.config, PAD)
    return dag.graph_of(net, objective, params, rows, labels), labels


def test_links_are_a_mixture_of_softmaxes_over_the_vertices_behind(small):
    net, params, _, rows, real = small
    links = np.array(jax.jit(net.dag_links)(params, rows, real))
    weights = params["decoder"]["dag_links"]
    heads, width = net.config.heads, net.config.d_model // net.config.heads
    for b in range(len(rows)):
        count = int(real[b].sum())
        positions = weights["embed_positions"]["embedding"][2 : 2 + count]
        inputs = np.concatenate([rows[b, :count], positions], axis=1)
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
    logs = log_softmax(tiny.project(net, params, rows), axis=-1)
    expected = np.take_along_axis(logs, np.broadcast_to(np.array(labels.tokens)[:, None], (*rows.shape[:2], 8)), axis=2)
    np.testing.assert_allclose(graph.emissions, np.swapaxes(expected, 1, 2), atol=1e-5)


def test_vertices_read_bos_masks_and_eos_and_see_the_real_ones(small):
    net, _, batch, _, real = small
    group = jax.device_get(
        jax.jit(source_group, static_argnums=(0, 2, 3))("dag", batch.source, net.config, net.specials)
    )
    for tokens, flags in zip(group.tokens, real, strict=True):
        count = int(flags.sum())
        assert tokens[:count].tolist() == [BOS, *[MASK] * (count - 2), EOS]
    assert group.position_table == "dag"
    np.testing.assert_array_equal(group.attends["dag"][:, 0], real)
    assert [net.config.dag_slots(length) for length in (2, 3, 4)] == [3, 5, 6]


def test_a_target_that_does_not_fit_has_no_weight_and_leaves_all_values_finite(small, computed):
    net, params, batch, rows, _ = small
    (value, metrics), gradient = computed
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, metrics, gradient)))
    _, labels = jax.device_get(graph_and_labels(net, params, batch, rows))
    unfit = np.flatnonzero(~labels.fits).tolist()
    assert 1 in unfit
    assert len(unfit) <= 3
    np.testing.assert_allclose(metrics["dag/unfit"], len(unfit) / 6)
    kept = np.flatnonzero(labels.fits)
    divisors = tiny.divisors(net, OBJECTIVE, batch)
    assert float(divisors["dag"]) == float(labels.real[kept].sum())
    alone = loss_of(net, OBJECTIVE, params, jax.tree.map(lambda x: x[kept], batch))[1]
    for name in ("loss/dag", "loss/kl_ar_dag", "nll/dag"):
        np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-5)


def test_the_loss_is_the_likelihood_by_all_paths_per_token(small, computed):
    net, params, batch, rows, real = small
    graph, labels = jax.device_get(graph_and_labels(net, params, batch, rows))
    links, emissions = graph.links.astype(np.float64), graph.emissions.astype(np.float64)
    total, tokens = 0.0, 0
    for row in np.flatnonzero(labels.fits):
        count, length = int(real[row].sum()), int(labels.real[row].sum())
        total -= np.logaddexp.reduce(path_scores(links[row], emissions[row], count, length))
        tokens += length
    (_, metrics), _ = computed
    np.testing.assert_allclose(metrics["loss/dag"], total / tokens, rtol=1e-5)


def test_the_divergence_is_between_rows_that_predict_the_same_token(small, computed):
    net, params, batch, rows, _ = small
    graph, labels = graph_and_labels(net, params, batch, rows)
    path, labels = jax.device_get((jax.jit(dag.best_path)(graph, labels), labels))
    vocab = tiny.VOCAB
    ar = np.array(tiny.project(net, params, tiny.joint_rows(net, params, batch, ("ar",))["ar"]))[..., :vocab]
    ours = np.array(tiny.project(net, params, rows))[..., :vocab]
    total = 0.0
    for row in np.flatnonzero(labels.fits):
        for position in range(1, int(labels.real[row].sum())):
            p, q = (softmax(x) for x in (ar[row, position - 1], ours[row, path[row, position]]))
            total += 0.5 * ((p - q) * (np.log(p) - np.log(q))).sum()
    divisors, ((_, metrics), _) = tiny.divisors(net, OBJECTIVE, batch), computed
    np.testing.assert_allclose(metrics["loss/kl_ar_dag"], total / float(divisors["dag"]), rtol=1e-4)


def test_padding_changes_nothing(small, computed):
    net, params, batch, *_ = small
    (one, metrics), _ = computed
    other, others = loss_of(net, OBJECTIVE, params, tiny.padded(batch, source=3, target=2, rows=2))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_joint_rows_are_those_of_the_pass_alone():
    net, params = tiny.model(dag_ratio=2.0, ctc_ratio=1.5)
    families = ("ar", "ctc", "dag", "nar", "aux")
    alone, real, joint, without = jax.device_get(tiny.rows_with_and_without(net, params, tiny.batch(), "dag", families))
    np.testing.assert_allclose(joint["dag"][real], alone[real], atol=2e-5)
    for name in ("ar", "ctc", "nar", "aux"):
        np.testing.assert_allclose(joint[name], without[name], atol=2e-5)


def test_vertices_have_positions_of_their_own(small):
    net, params, batch, rows, real = small
    moved = jax.tree.map(np.copy, params)
    moved["decoder"]["embed_positions"]["embedding"] += 1.0
    np.testing.assert_array_equal(np.array(tiny.source_rows(net, moved, batch, "dag")[0])[real], rows[real])
    table = moved["decoder"]["embed_dag_positions"]["embedding"]
    table += np.random.default_rng(1).normal(size=table.shape).astype(np.float32)
    assert not np.allclose(np.array(tiny.source_rows(net, moved, batch, "dag")[0])[real], rows[real], atol=1e-3)


@partial(jax.jit, static_argnums=0)
def glance(net, params, rows, labels, path, ratio):
    table, rng = params["embed_tokens"]["embedding"], jax.random.key(0)
    return dag.glance(rows, table, labels, path, net.config, OBJECTIVE, ratio=ratio, dtype=net.dtype, rng=rng)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_glancing_shows_ratio_times_the_wrong_tokens(small, ratio):
    net, params, batch, rows, real = small
    graph, labels = graph_and_labels(net, params, batch, rows)
    path = jax.jit(dag.best_path)(graph, labels)
    shown, path, labels = jax.device_get((glance(net, params, rows, labels, path, ratio), path, labels))
    best = np.array(tiny.project(net, params, rows)).argmax(-1)
    for row, (tokens, way) in enumerate(zip(batch.target, path, strict=True)):
        inner = range(1, int(labels.real[row].sum()) - 1) if labels.fits[row] else ()
        wrong = sum(best[row, way[i]] != tokens[i] for i in inner)
        assert (shown[row] >= 0).sum() == np.round(ratio * wrong)
        assert {(r, shown[row, r]) for r in np.flatnonzero(shown[row] >= 0)} <= {(way[i], tokens[i]) for i in inner}
    assert (shown >= 0).any() == (ratio > 0)
    assert not (shown[~real] >= 0).any()


def test_shown_vertices_read_their_token(small):
    net, params, batch, rows, real = small
    shown = np.full(real.shape, -1)
    shown[0, 2] = 9
    other, joint = jax.device_get((
        tiny.source_rows(net, params, batch, "dag", shown)[0],
        tiny.joint_rows(net, params, batch, ("dag",), {"dag": shown})["dag"],
    ))  # fmt: skip
    assert not np.allclose(other[0], rows[0], atol=1e-3)
    np.testing.assert_allclose(other[2:], rows[2:], atol=1e-6)
    np.testing.assert_allclose(joint[real], other[real], atol=2e-5)


def test_glancing_changes_the_loss_and_leaves_gradients_finite(small, computed):
    net, params, batch, *_ = small
    glancing = dataclasses.replace(OBJECTIVE, glancing=((0, 1.0), (1, 0.0)))
    ((value, _), gradient), ((without, _), _) = jax.device_get([
        loss_and_gradient(net, glancing, params, batch, step, jax.random.key(3)) for step in (0, 1)
    ])  # fmt: skip
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert not np.isclose(value, without, rtol=1e-4)
    np.testing.assert_allclose(without, computed[0][0], rtol=1e-5)


@pytest.mark.parametrize("name", ["dag", further("janus_dag")])
def test_training_steps_decrease_the_loss(name):
    net, params = tiny.model(dag_ratio=1.5, encoder_layers=1)
    config = Config(
        model=net.config,
        objective=ObjectiveConfig(name=name, label_smoothing=0.0, glancing=0.5),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant"),
        train=TrainConfig(steps=20),
    )
    state, step = jax.jit(partial(state_from_params, config))(params), jax.jit(make_train_step(net, config))
    batch = jax.tree.map(lambda x: x[None], tiny.batch())
    values = []
    for _ in range(20):
        state, metrics = step(state, batch)
        values.append(float(metrics["loss/dag"]))
    assert values[-1] < 0.75 * values[0]
    assert {"dag/unfit", "dag/visits", "dag/dead", "dag/entropy", "nll/dag"} <= metrics.keys()
