"""Released (fairseq) parameter arrays <-> the parameter tree of janus_jax.

Names correspond one to one: `encoder.layers.0.fc1.weight` is `encoder/layers_0/fc1/kernel`. Weights are transposed
([out, in] there, [in, out] here), the embedding is stored once, and its vocabulary padding is added or removed. CTC's
blank is a row of the embedding here (the one after the vocabulary), and a separate tensor there, so that programs
without CTC rows see only the vocabulary. Released models have no such tensor, and none of the others that AR rows do not
use (`parallel_only`).
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from janus_jax.config import ModelConfig
from janus_jax.convert.errors import ConvertError
from janus_jax.model import Janus, padded_vocab
from janus_jax.types import Params, Specials

SHARED = "encoder.embed_tokens.weight"
COPIES = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
LENGTHS = "decoder.embed_length.weight"
BLANK = "decoder.embed_blank.weight"  # [1, D], only in models with CTC rows
# Name patterns of the tensors that AR rows do not use: those of parallel rows alone, and of draft heads. Released models have none.
PARALLEL_ONLY = (
    BLANK, "decoder.embed_ctc_positions.weight", "decoder.embed_dag_positions.weight", "decoder.dag_links.*",
    "decoder.layers.*_adapter.*.weight", "draft_heads.*",
)  # fmt: skip
_IGNORED = re.compile(r"\.version$")
_TABLES = ("embed_tokens", "embed_positions", "embed_ctc_positions", "embed_dag_positions", "embed_length", "start")


def model_config_from_released(arrays: Mapping[str, np.ndarray], heads: int) -> ModelConfig:
    """The architecture of released arrays; the number of heads is an argument, since no shape shows it.

    An embedding layer norm marks the pretraining (BART) model, which also differs in other settings.
    """
    vocab_size, d_model = arrays[SHARED].shape
    common = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "ffn_dim": arrays["encoder.layers.0.fc1.weight"].shape[0],
        "heads": heads,
        "encoder_layers": count_layers(arrays, "encoder"),
        "decoder_layers": count_layers(arrays, "decoder"),
        "max_positions": arrays["decoder.embed_positions.weight"].shape[0] - 2,
        "length_classes": arrays[LENGTHS].shape[0],
        "dropout": 0.0,
        "dtype": "float32",
    }
    if "encoder.layernorm_embedding.weight" in arrays:
        return ModelConfig(
            **common,
            activation="gelu",
            scale_embedding=False,
            layernorm_embedding=True,
            nar_layernorm_embedding=False,
            ar_start="eos",
            mask_token="unk",
        )
    return ModelConfig(**common, ar_slot_position="input", mask_token="unk")


def params_from_released(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> Params:
    """The parameter tree of released arrays (named without the `param/` prefix of the golden files).

    Raises:
      ValueError: a copy of the embedding differs from the embedding.
    """
    params: Params = {}
    for name, array in arrays.items():
        if _IGNORED.search(name) or name == BLANK:
            continue
        if name in COPIES:
            if not np.array_equal(array, arrays[SHARED]):
                raise ValueError(f"{name} differs from {SHARED}: a janus_jax model has one shared embedding matrix")
            continue
        path, value = _tree_path(name, np.asarray(array, np.float32))
        if path == ("embed_tokens", "embedding"):
            if config.ctc_ratio:
                value = np.concatenate([value, np.asarray(arrays[BLANK], np.float32)])
            value = np.pad(value, ((0, padded_vocab(config) - value.shape[0]), (0, 0)))
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return params


def params_to_released(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Parameters (or their gradients) with released names and layouts; the embedding appears once, as `SHARED`."""
    released = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, kind = _released_name(path)
        value = np.asarray(leaf)
        if name == SHARED:
            if config.ctc_ratio:
                released[BLANK] = value[config.vocab_size :][:1]
            value = value[: config.vocab_size]
        released[name] = value.T if kind == "kernel" else value
    return released


def released_shapes(config: ModelConfig, specials: Specials) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that `params_to_released` returns for a model; computes no array."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(Janus(config, specials).init, jax.random.key(0))
    ):
        name, kind = _released_name(path)
        shape = (config.vocab_size, leaf.shape[1]) if name == SHARED else leaf.shape
        shapes[name] = shape[::-1] if kind == "kernel" else shape
    if config.ctc_ratio:
        shapes[BLANK] = (1, config.d_model)
    return shapes


def check_matrices(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> None:
    """Raises ConvertError unless `arrays` holds a matrix of each name."""
    for name in names:
        if name not in arrays:
            raise ConvertError(f"{name} is missing: truncated or foreign checkpoint")
        if arrays[name].ndim != 2 or not arrays[name].size:
            raise ConvertError(f"{name} has shape {arrays[name].shape}, not two axes: truncated or foreign checkpoint")


def parallel_only(names: Iterable[str]) -> list[str]:
    """Those of the names that are names of tensors which AR rows do not use."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in PARALLEL_ONLY)]


def count_layers(arrays: Mapping[str, Any], side: str) -> int:
    """Number of layers of a side ("encoder" or "decoder"), from the largest layer number in a name."""
    numbers = [int(m[1]) for name in arrays if (m := re.match(rf"{side}\.layers\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _released_name(path: Any) -> tuple[str, str]:
    """The released name of a leaf of the tree, and the leaf's kind in the tree: kernel, bias, scale or embedding."""
    keys = [key.key for key in path]
    if keys == ["embed_tokens", "embedding"]:
        return SHARED, "embedding"
    kind = keys.pop()
    name = re.sub(r"\blayers_(\d+)", r"layers.\1", ".".join(keys))
    return f"{name}.{'bias' if kind == 'bias' else 'weight'}", kind


def _tree_path(name: str, value: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    if name == SHARED:
        return ("embed_tokens", "embedding"), value
    *module, kind = re.sub(r"\blayers\.(\d+)", r"layers_\1", name).split(".")
    if kind == "bias":
        return (*module, "bias"), value
    if module[-1] in _TABLES:
        return (*module, "embedding"), value
    if value.ndim == 1:
        return (*module, "scale"), value
    return (*module, "kernel"), value.T
