"""A tiny model and random batches, for tests of every package."""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np

from janus_jax.config import ModelConfig
from janus_jax.model import Janus, layers
from janus_jax.objective.joint import batch_divisors
from janus_jax.types import Batch, Specials

VOCAB = 40


# Settings that do not change the parameters. Models that differ only in these share one initialisation.
SAME_PARAMETERS = (
    "activation", "activation_dropout", "ar_slot_position", "ar_start", "ar_stream", "attention", "attention_dropout",
    "ctc_input", "dropout", "dtype", "mask_token", "nar_layernorm_embedding", "remat", "scale_embedding",
)  # fmt: skip


def model(**changes):
    """A two-layer model of width 16 without dropout, and its parameters with biases that are not zero.

    A process initialises each model once. Every call returns new arrays, which a test may change or donate.
    """
    initial = {name: value for name, value in _settings(changes).items() if name not in SAME_PARAMETERS}
    return net(**changes), jax.device_put(jax.tree.map(np.copy, _parameters(ModelConfig(**initial))))


def net(**changes):
    """The model of `model` without parameters."""
    return Janus(ModelConfig(**_settings(changes)), Specials())


@functools.cache
def _shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def abstract(**changes):
    """The model of `model`, and the shapes of its parameters: enough where a function is traced and not run."""
    network = net(**changes)
    return network, _shapes(network)


def _settings(changes):
    return {
        "vocab_size": VOCAB, "d_model": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 2,
        "max_positions": 40, "length_classes": 40, "dropout": 0.0, "vocab_multiple": 16, "dtype": "float32",
    } | changes  # fmt: skip


def drawn(network, seed=0):
    """The parameters of `network.init`, in NumPy arrays. NumPy draws the weights: JAX's draws take seconds to compile."""
    rng = np.random.default_rng(seed)

    def normal(_key, shape, dtype=np.float32):
        return jax.numpy.asarray(rng.normal(0.0, 0.02, shape), dtype)

    with mock.patch.object(layers, "_INIT", normal):
        return jax.device_get(
            jax.jit(lambda key: network.init(key))(jax.random.key(0))
        )  # a lambda, to share no trace with `init`


@functools.cache
def _parameters(config):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype) if leaf.ndim == 1 else leaf,
        drawn(Janus(config, Specials())),
    )


@functools.cache
def batch(rows=4, source=9, target=8, masked=5, seed=0):
    """A padded batch of random sentences of different lengths, in NumPy arrays; each masks at least one token."""
    rng = np.random.default_rng(seed)
    arrays = Batch(
        source=np.full((rows, source), 1, np.int32),
        target=np.full((rows, target), 1, np.int32),
        masked=np.zeros((rows, masked), np.int32),
        masked_count=np.zeros(rows, np.int32),
        example_id=np.arange(rows, dtype=np.int32),
    )
    for row in range(rows):
        for array, width in ((arrays.source, source), (arrays.target, target)):
            length = rng.integers(4, width + 1)
            array[row, :length] = rng.integers(5, VOCAB, length)
            array[row, 0], array[row, length - 1] = 0, 2
        inner = length - 2
        count = rng.integers(1, min(inner, masked) + 1)
        arrays.masked[row, :count] = np.sort(rng.permutation(np.arange(1, inner + 1))[:count])
        arrays.masked_count[row] = count
    for array in jax.tree.leaves(arrays):
        array.setflags(write=False)  # all tests share it
    return arrays


def padded(original, source=0, target=0, masked=0, rows=0):
    """The same batch with more padding on every axis."""
    widths = {"source": source, "target": target, "parallel_target": target, "masked": masked}
    fill = {"source": 1, "target": 1, "parallel_target": 1, "masked": 0, "masked_count": 0, "example_id": -1}
    changed = {}
    for field in dataclasses.fields(original):
        if (array := getattr(original, field.name)) is None:
            continue
        pads = [(0, rows)] + ([(0, widths[field.name])] if array.ndim == 2 else [])
        changed[field.name] = np.pad(array, pads, constant_values=fill[field.name])
    return Batch(**changed)


@functools.partial(jax.jit, static_argnums=(0, 3))
def source_rows(net, params, batch, family, shown=None):
    """The rows of a family that needs no target, alone, and which of them are real."""
    encoded = net.encode(params, batch.source)
    return net.source_rows(params, family, batch.source, encoded, shown=shown)


@functools.partial(jax.jit, static_argnums=(0, 3))
def joint_rows(net, params, batch, families, shown=None):
    """The rows of a joint pass, by family."""
    return net.train_rows(params, net.encode(params, batch.source), batch, families=families, shown=shown)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def rows_with_and_without(net, params, batch, family, families):
    """Rows of `family` alone and which are real, the rows of a joint pass of `families`, and of one without `family`."""
    encoded = net.encode(params, batch.source)
    alone, real = net.source_rows(params, family, batch.source, encoded)
    joint, without = (
        net.train_rows(params, encoded, batch, families=names)
        for names in (families, tuple(name for name in families if name != family))
    )
    return alone, real, joint, without


@functools.partial(jax.jit, static_argnums=0)
def encode(net, params, source):
    """The encoder's output, without dropout."""
    return net.encode(params, source)


@functools.partial(jax.jit, static_argnums=0)
def nar_rows(net, params, source, tokens, slots=None):
    """The mask-predict rows of a target of tokens and masks, [B, T, D], or of the slots [B, M] alone, [B, M, D]."""
    return net.nar_rows(params, net.encode(params, source), tokens, slots)


@functools.partial(jax.jit, static_argnums=0)
def ar_logits(net, params, source, inputs):
    """The logits of teacher forcing, [B, T, V] with the columns of padding."""
    return net.project(params, net.ar_rows(params, net.encode(params, source), inputs))


@functools.partial(jax.jit, static_argnums=0, static_argnames="blank")
def project(net, params, rows, blank=False):
    """The logits of rows, [..., V] with the columns of padding."""
    return net.project(params, rows, blank=blank)


@functools.partial(jax.jit, static_argnums=(0, 1))
def divisors(net, objective, batch):
    """The divisors of the loss terms."""
    return batch_divisors(batch, net.config, objective, net.specials.pad)


def compiled_search(search, *static):
    """A search over emissions or a graph as one program, which gives its hypotheses as NumPy arrays."""
    program = jax.jit(functools.partial(search, specials=Specials()), static_argnames=static)
    return lambda scores, **settings: jax.device_get(program(scores, **settings))


def with_numpy_fields(result):
    """The same dataclass with NumPy arrays in place of JAX arrays."""
    return dataclasses.replace(result, **jax.device_get(vars(result)))


def sharper(params, factor):
    """NumPy parameters whose matrices have a larger spread: clear preferences, so that rounding cannot tip a choice."""
    return jax.tree.map(lambda x: x * factor if x.ndim == 2 else x, jax.device_get(params))


def largest_difference(a, b):
    """The largest absolute difference over all leaves of two trees."""
    a, b = jax.device_get((jax.tree.leaves(a), jax.tree.leaves(b)))
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
