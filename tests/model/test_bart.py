"""BART's architecture: published sizes; rematerialisation and fused attention change no result."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from janus_jax.config import ConfigError, ObjectiveConfig, resolve
from janus_jax.model import Janus, attention
from janus_jax.model.cost import parameter_count
from janus_jax.model.presets import PRESETS
from janus_jax.objective.joint import batch_divisors, loss
from janus_jax.types import Specials
from tests import tiny
from tests.further import further

BART = {"activation": "gelu", "layernorm_embedding": True, "scale_embedding": False, "ar_start": "eos"}


@pytest.mark.parametrize(("name", "published"), [("bart_base", 139_420_416), ("bart_large", 406_291_456)])
def test_presets_have_the_published_number_of_parameters(name, published):
    config = PRESETS[name]
    net = Janus(config, Specials(mask=50_264))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0)))
    vocabulary_padding = shapes["embed_tokens"]["embedding"].shape[0] - config.vocab_size
    parameters_of_ours = (vocabulary_padding + config.length_classes) * config.d_model
    assert parameter_count(shapes) - parameters_of_ours == published


def test_presets_are_settings_that_a_config_takes():
    for name, preset in PRESETS.items():
        model = dataclasses.asdict(preset)
        assert resolve({"model": model, "data": {"max_source_length": 64, "max_target_length": 64}}).model == preset, (
            name
        )


@functools.partial(jax.jit, static_argnums=(0, 3))
def value_and_gradient(net, params, batch, objective):
    def total(p):
        divisors = batch_divisors(batch, net.config, objective, net.specials.pad)
        key = jax.random.key(3) if net.config.dropout else None
        return loss(net, objective, p, batch, divisors=divisors, step=jax.numpy.int32(0), rng=key)[0]

    return jax.value_and_grad(total)(params)


def assert_same_training(one, other):
    """Loss and gradients of (net, params) and of another net at the same parameters."""
    batch, objective = tiny.batch(rows=6), ObjectiveConfig()
    (net, params), second = one, other
    value, gradient = value_and_gradient(net, params, batch, objective)
    again, other_gradient = value_and_gradient(second, params, batch, objective)
    np.testing.assert_allclose(value, again, rtol=1e-5)
    bound = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient))
    assert tiny.largest_difference(gradient, other_gradient) <= 1e-4 * bound + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_no_gradient_dropout_included(remat):
    assert_same_training(tiny.model(**BART, dropout=0.2), tiny.net(**BART, dropout=0.2, remat=remat))


def test_rematerialisation_computes_layers_again():
    def products(remat):
        net, params = tiny.abstract(**BART, remat=remat)
        text = value_and_gradient.lower(net, params, tiny.batch(), ObjectiveConfig(name="ar")).as_text()
        return len(re.findall(r"dot_general", text))

    assert products("none") < products("dots") < products("full")


@pytest.mark.parametrize("variant", [further({}), {"ar_stream": "content"}, further({"norm": "pre"})])
def test_fused_attention_equals_ours(variant):
    (net, params), fused = tiny.model(**BART | variant), tiny.net(**BART | variant, attention="fused")
    assert_same_training((net, params), fused)
    batch = tiny.batch()
    real = np.asarray(batch.target) != net.specials.pad

    @functools.partial(jax.jit, static_argnums=0)
    def rows(n):
        encoded = n.encode(params, batch.source)
        return n.ar_rows(params, encoded, batch.target), n.nar_rows(params, encoded, batch.target)

    for ours, theirs in zip(rows(net), rows(fused), strict=True):
        np.testing.assert_allclose(np.asarray(ours)[real], np.asarray(theirs)[real], atol=1e-5)


@pytest.mark.parametrize(("rows", "keys"), [(5, 7), (5, 8), (6, 7), (6, 8)])
def test_rows_and_keys_are_made_even_for_cudnn_without_a_change_of_the_result(rows, keys):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 8)).astype(np.float32) for n in (rows, keys, keys))
    mask = rng.random((2, rows, keys)) < 0.5
    mask[:, :, 0] = True
    more = attention._even(q, k, v, mask)
    assert [x.shape[1] % 2 for x in more] == [0] * 4
    assert more[3].shape[2] % 2 == 0
    attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="xla")
    expected, padded = attend(q, k, v, mask=mask[:, None]), attend(*more[:3], mask=more[3][:, None])
    np.testing.assert_allclose(padded[:, :rows], expected, rtol=1e-6, atol=1e-6)
    assert np.isfinite(padded).all()


def test_fused_attention_with_dropout_in_it_is_refused():
    with pytest.raises(ConfigError, match=r"config\.model\.attention: .* set model\.attention_dropout"):
        resolve({"model": {"attention": "fused", "attention_dropout": 0.1}})


def test_unk_replaces_masked_tokens_with_mask_token_unk():
    net, params = tiny.model(mask_token="unk")
    dedicated = tiny.net()
    assert (net.specials.mask, dedicated.specials.mask) == (3, 4)
    batch = tiny.batch()
    swapped = jax.tree.map(np.array, params)
    swapped["embed_tokens"]["embedding"][[3, 4]] = swapped["embed_tokens"]["embedding"][[4, 3]]
    run = jax.jit(lambda n, p: n.train_rows(p, n.encode(p, batch.source), batch), static_argnums=0)
    a, b = run(net, params), run(dedicated, swapped)
    assert tiny.largest_difference(a, b) == 0.0


def test_init_creates_the_layer_norm_that_nar_rows_skip():
    _, shapes = tiny.abstract(**BART)
    _, params = tiny.abstract(**BART, nar_layernorm_embedding=False)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    assert "layernorm_embedding" in params["decoder"]
