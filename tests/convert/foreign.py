"""Small models in other programs' formats, for the tests of imports and exports."""

import argparse
import json

import numpy as np

from janus_jax import checkpoint, text
from janus_jax.config import ModelConfig, resolve
from janus_jax.convert.fairseq import COPIES, SHARED, parallel_only, params_from_released, released_shapes
from janus_jax.model import Janus
from janus_jax.types import Specials

WORDS = "zero one two three four five six seven eight nine red green blue big small old new".split()
BART = {
    "activation": "gelu", "scale_embedding": False, "layernorm_embedding": True, "ar_start": "eos", "ar_stream": "content",
}  # fmt: skip
LINES = [f"{a} {b}, {c}!" for a in WORDS for b in WORDS[::3] for c in WORDS[1::4]]


_SPREADS = {
    "embed_positions": 1.0, "embed_ctc_positions": 1.0, "embed_dag_positions": 1.0, "dag_links": 0.3, "embed_tokens": 0.2,
    "_adapter": 0.3,
}  # fmt: skip


def dictionary(path, words=36, mask=False):
    """A dict.txt of `words` words; the vocabulary has 4 ids before them and, with `mask`, <mask> as the last one."""
    names = [f"w{i}" for i in range(words)] + ["<mask>"] * mask
    path.write_text("".join(f"{name} 1\n" for name in names), encoding="utf-8")
    return path


def byte_bpe(size=280):
    """A byte-level BPE tokenizer; the id of <mask> is 4."""
    return text.train(LINES, resolve({"text": {"model_type": "byte_bpe", "vocab_size": size}}).text)


def padded_byte_bpe(size):
    """A byte-level BPE tokenizer of a published size: fillers between its tokens and <mask>, which is the last id."""
    tokenizer = byte_bpe()
    content = json.loads(tokenizer.to_bytes())
    vocab = content["model"]["vocab"]
    del vocab["<mask>"]
    taken = set(vocab.values())
    vocab |= {f"filler{i}": i for i in range(size - 1) if i not in taken} | {"<mask>": size - 1}
    for token in content["added_tokens"]:
        token["id"] = vocab[token["content"]]
    return text.load(json.dumps(content).encode())


def network(mask=4, **changes):
    """A tiny model without dropout; `changes` are settings of ModelConfig."""
    settings = {
        "vocab_size": 40, "d_model": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 2,
        "max_positions": 40, "length_classes": 40, "dropout": 0.0, "vocab_multiple": 16, "dtype": "float32",
    }  # fmt: skip
    return Janus(ModelConfig(**(settings | changes)), Specials(mask=mask))


def arrays_of(net, seed=0):
    """Random arrays under released names; matrices are large enough that the model does not copy its input.

    Arrays that only parallel rows use are drawn behind the others, and those of draft heads last, so that a model without
    them has the same other arrays.
    """
    rng = np.random.default_rng(seed)
    arrays, shapes = {}, released_shapes(net.config, net.specials)
    last = parallel_only(shapes)
    for name, shape in sorted(shapes.items(), key=lambda item: (item[0].startswith("draft_heads."), item[0] in last)):
        spread = next((s for part, s in _SPREADS.items() if part in name), 0.6) if len(shape) > 1 else 0.1
        array = rng.normal(0.0, spread, shape) + ("norm" in name and name.endswith("weight"))
        arrays[name] = array.astype(np.float32)
    return arrays


def released(**changes):
    """A random model, and its arrays as a fairseq checkpoint holds them."""
    net = network(**changes)
    arrays = arrays_of(net)
    arrays |= dict.fromkeys(COPIES, arrays[SHARED])
    arrays |= {f"{side}.version": np.full(1, 3.0, np.float32) for side in ("encoder", "decoder")}
    return net, arrays


def settings(**changes):
    """fairseq's settings of the tiny model."""
    sides = {"embed_dim": 16, "ffn_embed_dim": 32, "layers": 2, "attention_heads": 2, "learned_pos": True,
             "normalize_before": False}  # fmt: skip
    flat = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    common = {"arch": "janus_transformer", "activation_fn": "relu", "dropout": 0.3, "no_scale_embedding": False}
    return argparse.Namespace(**(flat | common | changes))


def save_pt(path, arrays, args=None, legacy=False, **others):
    """A fairseq checkpoint file."""
    import torch

    model = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    state = {"args": args, "cfg": None, "model": model, "optimizer_history": [{"num_updates": 77}]} | others
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_checkpoint(path, tokenizer, *, step=12, config=None, about=None, change=lambda arrays: arrays, **model):
    """Writes a checkpoint of a random tiny model for `tokenizer`, after `change` of its arrays; returns network and parameters."""
    net = network(tokenizer.specials.mask, vocab_size=tokenizer.vocab_size, **model)
    params = params_from_released(change(arrays_of(net)), net.config)
    settings = {name: getattr(net.config, name) for name in net.config.__dataclass_fields__}
    groups = {
        "model": settings | {"vocab_size": 0},
        "data": {"max_source_length": 30, "max_target_length": 24},
        "decode": {"ar": {"beam": 3, "lenpen": 0.7, "stop": "current"}},
    } | (config or {})
    checkpoint.write(
        path, params, resolve(groups), tokenizer.to_bytes(), {"step": step, "made_by": "train"} | (about or {})
    )
    return net, params


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
