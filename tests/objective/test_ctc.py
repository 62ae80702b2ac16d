"""CTC against enumeration of all alignments, against optax on the whole vocabulary and against PyTorch."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scipy.special import softmax

from janus_jax.config import ObjectiveConfig
from janus_jax.model import Janus
from janus_jax.model.families.ctc import origins
from janus_jax.objective import ctc, joint
from janus_jax.objective.joint import batch_divisors, loss
from tests import tiny

PAD, BLANK = 1, tiny.VOCAB
OBJECTIVE = ObjectiveConfig(name="janus_ctc", label_smoothing=0.0)


@pytest.fixture(scope="module")
def small():
    """A model with 1.5 rows per source token, a batch and its CTC rows, in NumPy arrays. Some targets repeat tokens, one is too long."""
    net, params = tiny.model(ctc_ratio=1.5, encoder_layers=1)
    # The blank has much probability in some rows and little in others.
    params["embed_tokens"]["embedding"] = _with_row(params["embed_tokens"]["embedding"], BLANK)
    batch = tiny.batch(rows=6, source=4, target=8, masked=3)
    target = np.array(batch.target)
    target[0, :5] = [0, 7, 7, 8, 2]
    target[0, 5:] = PAD
    target[1] = [0, 9, 9, 9, 9, 9, 9, 2]  # needs eleven rows
    target[2, :4] = [0, 6, 6, 2]
    target[2, 4:] = PAD
    target[3, :5] = [0, 6, 11, 6, 2]
    target[3, 5:] = PAD
    batch = dataclasses.replace(batch, target=target)
    rows, real = tiny.source_rows(net, params, batch, "ctc")
    return (net, *jax.device_get((params, batch, rows, real)))


@partial(jax.jit, static_argnums=1)
def _with_row(table, row):
    """The table with random numbers in one row."""
    return table.at[row].set(jax.random.normal(jax.random.key(5), table[row].shape))


@partial(jax.jit, static_argnums=(0, 1))
def loss_of(net, objective, params, batch):
    """The loss of a training step without dropout."""
    divisors = batch_divisors(batch, net.config, objective, PAD)
    return loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(0))


@partial(jax.jit, static_argnums=0)
def log_probs(net, params, rows):
    """Log-probabilities of vocabulary and blank, [B, R, V + 1]."""
    return jax.nn.log_softmax(net.project(params, rows, blank=True)[..., : BLANK + 1])


def inner(target):
    """The target tokens without bos, eos and padding."""
    return [int(token) for token in target if token not in (0, 1, 2)]


def alignments(tokens, rows):
    """All alignments of `tokens` with `rows` rows; each has the index of a token or ctc.BLANK for every row."""
    paths = []
    for path in itertools.product([ctc.BLANK, *range(len(tokens))], repeat=rows):
        merged = [i for n, i in enumerate(path) if not n or i != path[n - 1]]
        read = [i for i in merged if i != ctc.BLANK]
        # Equal neighbours without a blank between them merge.
        merges = any(
            a != b and ctc.BLANK not in (a, b) and tokens[a] == tokens[b] for a, b in itertools.pairwise(merged)
        )
        if read == list(range(len(tokens))) and not merges:
            paths.append(path)
    return paths


@partial(jax.jit, static_argnums=0)
def labels_of(net, batch):
    return ctc.labels_of(batch.source, batch.target, net.config, PAD)


best_alignment = jax.jit(ctc.best_alignment)


@partial(jax.jit, static_argnums=0)
def emissions_of(net, params, batch, rows):
    labels = ctc.labels_of(batch.source, batch.target, net.config, PAD)
    table = params["embed_tokens"]["embedding"]
    return ctc.emissions(rows, table, labels, net.config, OBJECTIVE, net.dtype), labels


def test_likelihood_and_best_alignment_are_those_of_all_alignments(small):
    net, params, batch, rows, real = small
    emissions, labels = emissions_of(net, params, batch, rows)
    nll, best, logs, labels = jax.device_get((
        jax.jit(ctc.negative_log_likelihood)(emissions, labels), best_alignment(emissions, labels),
        log_probs(net, params, rows), labels,
    ))  # fmt: skip
    assert not labels.fits[1]
    assert labels.fits.sum() >= 4
    for row in np.flatnonzero(labels.fits):
        tokens, count = inner(batch.target[row]), int(real[row].sum())
        ids = [*tokens, BLANK]
        paths = alignments(tokens, count)
        scores = [sum(logs[row, r, ids[i]] for r, i in enumerate(path)) for path in paths]
        np.testing.assert_allclose(nll[row], -np.logaddexp.reduce(scores), rtol=1e-5)
        assert tuple(best[row, :count]) == paths[int(np.argmax(scores))]
        assert (best[row, count:] == ctc.BLANK).all()
    assert nll[1] == 0.0


def test_gradients_are_those_of_the_sum_over_alignments(small):
    net, params, batch, rows, real = small

    def ours(hidden):
        emissions, labels = emissions_of(net, params, batch, hidden)
        return ctc.negative_log_likelihood(emissions, labels).sum()

    def enumerated(hidden):
        logs, total = log_probs(net, params, hidden), 0.0
        for row in range(len(batch.target)):
            tokens, count = inner(batch.target[row]), int(real[row].sum())
            if row == 1:
                continue
            paths = np.array([[[*tokens, BLANK][i] for i in path] for path in alignments(tokens, count)])
            picked = logs[row, np.arange(count), paths]
            total -= jax.nn.logsumexp(picked.sum(axis=1))
        return total

    expected = jax.device_get(jax.jit(jax.grad(enumerated))(rows))
    np.testing.assert_allclose(jax.jit(jax.grad(ours))(rows), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("at_once", [0, 8])
def test_equals_optax_on_the_whole_vocabulary_and_pytorch(small, at_once):
    net, params, batch, rows, real = small
    objective = dataclasses.replace(OBJECTIVE, projection_rows=at_once)
    labels = jax.device_get(labels_of(net, batch))

    def ours(params, rows):
        table = params["embed_tokens"]["embedding"]
        emissions = ctc.emissions(rows, table, labels, net.config, objective, net.dtype)
        return ctc.negative_log_likelihood(emissions, labels)

    def whole(params, rows):
        logits = net.project(params, rows, blank=True)
        values = optax.ctc_loss(logits, 1.0 - real, labels.tokens, 1.0 - labels.real, blank_id=BLANK)
        return jnp.where(labels.fits, values, 0.0)

    def values_and_gradients(function):
        """The values, and the gradients of their sum for the table and the rows."""
        values, pull_back = jax.vjp(function, params, rows)
        of_params, of_rows = pull_back(jnp.ones_like(values))
        return values, (of_params["embed_tokens"]["embedding"], of_rows)

    run = jax.jit(values_and_gradients, static_argnums=0)
    (values, ours_gradients), (expected, gradients) = jax.device_get((run(ours), run(whole)))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    for a, b in zip(ours_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-6)
    logits = torch.tensor(np.array(tiny.project(net, params, rows, blank=True)), requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        torch.log_softmax(logits, -1).transpose(0, 1),
        torch.tensor(np.array(labels.tokens)).long(),
        torch.tensor(np.array(real.sum(1))).long(),
        torch.tensor(np.array(labels.real.sum(1))).long(),
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    np.testing.assert_allclose(values, theirs.detach().numpy(), rtol=1e-5)
    theirs.sum().backward()
    expected = logits.grad.numpy() @ params["embed_tokens"]["embedding"]
    np.testing.assert_allclose(ours_gradients[1], expected, atol=1e-5 * np.abs(expected).max())


def test_a_target_that_does_not_fit_has_no_weight_and_leaves_all_values_finite(small):
    net, params, batch, *_ = small
    divisors = tiny.divisors(net, OBJECTIVE, batch)
    gradient_of = jax.jit(jax.value_and_grad(lambda p: loss_of(net, OBJECTIVE, p, batch), has_aux=True))
    (value, metrics), gradient = jax.device_get(gradient_of(params))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, metrics, gradient)))
    labels = jax.device_get(labels_of(net, batch))
    unfit = [row for row in range(6) if not labels.fits[row]]
    np.testing.assert_allclose(metrics["ctc/unfit"], len(unfit) / 6)
    assert divisors["ctc"] == sum(len(inner(batch.target[row])) for row in range(6) if row not in unfit)
    # The CTC terms equal those of a batch without this target.
    kept = [row for row in range(6) if row not in unfit]
    fewer = jax.tree.map(lambda x: x[kept], batch)
    alone = loss_of(net, OBJECTIVE, params, fewer)[1]
    for name in ("loss/ctc", "loss/kl_ar_ctc", "nll/ctc"):
        np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-5)


def test_the_divergence_is_between_rows_that_predict_the_same_token(small):
    net, params, batch, rows, real = small
    logs = np.array(log_probs(net, params, rows))
    emissions, labels = emissions_of(net, params, batch, rows)
    best, labels = jax.device_get((best_alignment(emissions, labels), labels))
    ar = np.array(tiny.project(net, params, tiny.joint_rows(net, params, batch, ("ar",))["ar"]))[..., :BLANK]
    masses, divergences = [], []
    for row in np.flatnonzero(labels.fits):
        for n, token in enumerate(inner(batch.target[row])):
            aligned_row = max((r for r in range(real.shape[1]) if best[row, r] == n), key=lambda r: logs[row, r, token])
            p, q = (softmax(x) for x in (ar[row, n], logs[row, aligned_row, :BLANK]))
            divergences.append(0.5 * ((p - q) * (np.log(p) - np.log(q))).sum())
            masses.append(1 - np.exp(logs[row, aligned_row, BLANK]))
    low, high = np.sort(masses)[len(masses) // 2 - 1 :][:2]
    floor = float(low + high) / 2  # half of the rows are below it
    assert low < floor < high
    total = sum(kl for kl, mass in zip(divergences, masses, strict=True) if mass > floor)
    divisors = tiny.divisors(net, OBJECTIVE, batch)
    metrics = loss_of(net, dataclasses.replace(OBJECTIVE, ctc_floor=floor), params, batch)[1]
    np.testing.assert_allclose(metrics["loss/kl_ar_ctc"], total / float(divisors["ctc"]), rtol=1e-4)


def test_the_likelihood_is_float32_on_every_device(small):
    """optax selects by matrix products. Only accelerators round their factors, so the test reads the program."""
    net, params, batch, rows, _ = small
    emissions, labels = emissions_of(net, params, batch, rows)
    program = str(jax.make_jaxpr(jax.grad(lambda x: ctc.negative_log_likelihood(x, labels).sum()))(emissions))
    assert (
        program.count("dot_general[")
        == program.count("precision=(Precision.HIGHEST") + program.count("precision=HIGHEST")
        > 0
    )


def test_targets_without_tokens_count_nothing(small):
    net, params, batch, *_ = small
    target = np.stack([batch.target[:, 0], np.full(len(batch.target), 2)], axis=1, dtype=np.int32)
    frames = dataclasses.replace(batch, target=target, masked_count=batch.masked_count * 0)
    value, metrics = loss_of(net, dataclasses.replace(OBJECTIVE, name="ctc"), params, frames)
    assert (float(value), float(metrics["ctc/unfit"])) == (0.0, 0.0)


def test_padding_changes_nothing(small):
    net, params, batch, *_ = small
    wider = tiny.padded(batch, source=3, target=2, rows=2)
    values = [loss_of(net, OBJECTIVE, params, b) for b in (batch, wider)]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-5)


def test_joint_rows_are_those_of_the_ctc_pass_alone():
    for source, positions in (("mask", "shared"), ("source", "own"), ("encoder", "own")):
        net, params = tiny.model(ctc_ratio=2.0, ctc_input=source, ctc_positions=positions)
        families = ("ar", "nar", "aux", "ctc")
        alone, real, joint, without = jax.device_get(
            tiny.rows_with_and_without(net, params, tiny.batch(), "ctc", families)
        )
        np.testing.assert_allclose(joint["ctc"][real], alone[real], atol=2e-5)
        for name in ("ar", "nar", "aux"):
            np.testing.assert_allclose(joint[name], without[name], atol=2e-5)


def test_rows_read_encoder_states_and_their_own_positions():
    batch = tiny.batch()
    plain, params = tiny.model(ctc_ratio=2.0, ctc_positions="own")
    net = Janus(dataclasses.replace(plain.config, ctc_input="encoder"), plain.specials)
    encoded = jax.device_get(tiny.encode(net, params, batch.source))
    # Without the states the rows are those that read the mask token alone.
    nothing = dataclasses.replace(encoded, states=0 * encoded.states)

    @partial(jax.jit, static_argnums=0)
    def rows_of(net, params, states):
        projected = net.project_source(params, encoded)
        rows, _ = net.source_rows(params, "ctc", batch.source, states, projected=projected)
        return rows

    masks, real = jax.device_get(tiny.source_rows(plain, params, batch, "ctc"))
    for states, equal in ((encoded, False), (nothing, True)):
        rows = np.asarray(rows_of(net, params, states))
        assert np.allclose(rows[real], masks[real], atol=1e-5) == equal
    # The table of the other rows has no part in them.
    before = np.asarray(rows_of(net, params, encoded))[real]
    moved = jax.device_get(params)
    moved["decoder"]["embed_positions"]["embedding"] = moved["decoder"]["embed_positions"]["embedding"] + 1.0
    np.testing.assert_array_equal(np.asarray(rows_of(net, moved, encoded))[real], before)
    noise = np.random.default_rng(1).normal(size=(42, 16)).astype(np.float32)
    moved["decoder"]["embed_ctc_positions"]["embedding"] = moved["decoder"]["embed_ctc_positions"]["embedding"] + noise
    assert not np.allclose(np.asarray(rows_of(net, moved, encoded))[real], before, atol=1e-3)


def test_rows_of_a_source():
    net = tiny.net(ctc_ratio=1.1)
    assert [net.config.ctc_slots(length) for length in (1, 9, 10, 11)] == [2, 10, 11, 13]
    source = np.array([[False, True, True, True], [True, True, False, False]])
    net = tiny.net(ctc_ratio=2.0)
    assert jax.jit(origins, static_argnums=1)(source, net.config).tolist() == [
        [1, 1, 2, 2, 3, 3, 3, 3],
        [0, 0, 1, 1, 1, 1, 1, 1],
    ]


@partial(jax.jit, static_argnums=0)
def glance(net, params, rows, labels, alignment, ratio):
    table, rng = params["embed_tokens"]["embedding"], jax.random.key(0)
    return ctc.glance(rows, table, labels, alignment, net.config, OBJECTIVE, ratio=ratio, dtype=net.dtype, rng=rng)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_glancing_shows_ratio_times_the_wrong_rows(small, ratio):
    net, params, batch, rows, real = small
    emissions, labels = emissions_of(net, params, batch, rows)
    alignment = best_alignment(emissions, labels)
    shown, alignment, labels = jax.device_get((glance(net, params, rows, labels, alignment, ratio), alignment, labels))
    aligned = np.where(alignment == ctc.BLANK, BLANK, np.take_along_axis(labels.tokens, np.maximum(alignment, 0), 1))
    wrong = ((np.array(log_probs(net, params, rows)).argmax(-1) != aligned) & real).sum(1)
    assert ((shown >= 0).sum(1) == np.where(labels.fits, np.round(ratio * wrong), 0)).all()
    assert (shown[shown >= 0] == aligned[shown >= 0]).all()
    assert not (shown[~real] >= 0).any()


def test_the_first_pass_of_glancing_has_the_dropout_of_the_second(monkeypatch):
    net, params = tiny.model(ctc_ratio=2.0, dropout=0.3)
    batch = tiny.batch()
    seen = []
    usual = ctc.shown_tokens

    def remember(net, objective, params, rows, *arguments, **settings):
        seen.append(rows)
        return usual(net, objective, params, rows, *arguments, **settings)

    family = dataclasses.replace(joint.SENTENCE_LOSSES["ctc"], shown_tokens=remember)
    monkeypatch.setitem(joint.SENTENCE_LOSSES, "ctc", family)
    objective, rng = ObjectiveConfig(name="ctc", glancing=0.5), jax.random.key(3)

    @jax.jit
    def rows_of_passes(params):
        divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
        loss(net, objective, params, batch, divisors=divisors, step=jnp.int32(0), rng=rng)
        keys = jax.random.split(rng, 3)
        encoded = net.encode(params, batch.source, keys[0])
        second = net.train_rows(params, encoded, batch, keys[1], families=("ctc",))["ctc"]
        without = net.train_rows(params, encoded, batch, families=("ctc",))["ctc"]
        return seen[0], second, without

    first, second, without = jax.device_get(rows_of_passes(params))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert not np.allclose(first, without, atol=1e-2)


def test_shown_rows_read_their_token(small):
    net, params, batch, rows, real = small
    shown = np.full(real.shape, -1)
    shown[0, 2] = 9
    other, _ = jax.device_get(tiny.source_rows(net, params, batch, "ctc", shown))
    assert not np.allclose(other[0], rows[0], atol=1e-3)
    np.testing.assert_allclose(other[2:], rows[2:], atol=1e-6)
    joint = tiny.joint_rows(net, params, batch, ("ctc",), {"ctc": shown})
    np.testing.assert_allclose(np.asarray(joint["ctc"])[real], other[real], atol=2e-5)
