"""Random models with CTC rows, DAG rows and adapters, and what the tests of their exports share."""

import itertools
import re

import numpy as np

from janus_jax.convert.fairseq import BLANK, SHARED
from tests.convert import foreign
from tests.further import further

# For 280 tokens: a table whose padding includes the blank, one padded only because of the blank, and one with much padding.
ARCHITECTURES = {
    "post-norm": {"ctc_ratio": 2.0, "vocab_multiple": 16},
    "bart, source rows": foreign.BART | {"ctc_ratio": 1.5, "ctc_input": "source", "vocab_multiple": 8},
    "pre-norm, mask is unk": {
        "ctc_ratio": 1.1, "dag_ratio": 2.4, "norm": "pre", "mask_token": "unk", "vocab_multiple": 128,
    },
    "bart, encoder rows, adapters": foreign.BART | {
        "ctc_ratio": 2.0, "ctc_input": "encoder", "ctc_positions": "own", "parallel_adapter_rank": 3,
    },
    "dag": {"dag_ratio": 3.5},
    "heads": {"draft_heads": 3, "draft_vocab": 30, "vocab_multiple": 8, "ar_stream": "content", "norm": "pre"},
    "bart, heads and rows": foreign.BART | {"draft_heads": 2, "ctc_ratio": 2.0},
    "bart, dag, adapters": foreign.BART | {"dag_ratio": 1.5, "parallel_adapter_rank": 3},
}  # fmt: skip
# The others have each property of these, but for `draft_vocab`.
FURTHER = ("bart, source rows", "dag", "heads")
SEARCHED = "pre-norm, mask is unk"  # another mask than the others, and much padding in its table
BARTS = [name for name in ARCHITECTURES if "bart" in name]
OF_PARALLEL_ROWS = (
    "draft_heads",
    "draft_vocab",
    "ctc_ratio",
    "ctc_input",
    "ctc_positions",
    "dag_ratio",
    "parallel_adapter_rank",
)
ADAPTED = "self_attn.q self_attn.k self_attn.v self_attn.out encoder_attn.q encoder_attn.out fc1 fc2".split()
LINKS = "embed_positions.weight q_proj.weight q_proj.bias k_proj.weight k_proj.bias gate.weight gate.bias".split()
BOS, PAD, EOS = 0, 1, 2
LONGEST = 16  # most tokens of a source


def with_rows(family):
    """Names of the architectures with rows of the family "ctc" or "dag"."""
    return [name for name, model in ARCHITECTURES.items() if model.get(f"{family}_ratio")]


def further_architectures(names):
    """The same names as parameters of tests; those of `FURTHER` run with `-m slow` only."""
    return [further(name) if name in FURTHER else name for name in names]


def with_searches(names, searches, common):
    """Cases (architecture, *search): all searches of `SEARCHED`, and one of the others; the rest run with `-m slow` only.

    A search of PyTorch reads states, rows and masks, whatever architecture they come from.
    """
    cases = [(name, *search) for name in names for search in searches]
    return [
        case if name == SEARCHED or (tuple(search) == common and name not in FURTHER) else further(*case)
        for case in cases
        for name, *search in [case]
    ]


def objective(model):
    """Name of the objective of a model with these settings."""
    return next((f"janus_{family}" for family in ("ctc", "dag") if model.get(f"{family}_ratio")), "ar")


def write(path, bpe, **model):
    lengths = {"max_source_length": LONGEST + 2, "max_target_length": 24}
    # The weights are random, so that all modes are equally untrained.
    config = {"objective": {"name": objective(model)}, "data": lengths, "decode": {"allow_untrained": True}}
    return foreign.write_checkpoint(path, bpe, config=config, change=lively, max_positions=64, **model)


def lively(arrays):
    """Arrays whose rows depend little on each other, where no token and no link wins everywhere, and the blank wins
    sometimes."""
    for name, array in arrays.items():
        if re.search(r"^decoder\.layers\.\d+\.(self_attn\.out_(proj|adapter\.up)|fc2(_adapter\.up)?)\.weight$", name):
            arrays[name] = 0.1 * array
        if name.startswith("encoder.layers.1.final_layer_norm."):
            arrays[name] = 0.3 * array  # else the states that CTC rows read are so large that these become alike
        if name in (SHARED, BLANK):
            arrays[name] = (3 if name == BLANK else 1) * array / np.linalg.norm(array, axis=1, keepdims=True)
    if "decoder.dag_links.q_proj.bias" in arrays:
        # Links lead to the next vertices more often than to those far behind.
        positions, keys = (arrays[f"decoder.dag_links.{part}.weight"] for part in ("embed_positions", "k_proj"))
        positions[:, 0], keys[:, keys.shape[0]] = 0.1 * np.arange(len(positions)), -1.0
        arrays["decoder.dag_links.q_proj.bias"] += 4.0
    return arrays


def write_ar_half(path, bpe, name):
    """Writes the checkpoint of an architecture without parallel rows of its own; its arrays are those of the AR half."""
    write(path, bpe, **{key: value for key, value in ARCHITECTURES[name].items() if key not in OF_PARALLEL_ROWS})


def tensors_of_parallel_rows(config):
    """Names of the tensors that AR rows do not use, in a model with two decoder layers."""
    names = {BLANK} if config.ctc_ratio else set()
    if config.ctc_ratio and config.ctc_positions == "own":
        names.add("decoder.embed_ctc_positions.weight")
    if config.dag_ratio:
        names |= {"decoder.embed_dag_positions.weight", *(f"decoder.dag_links.{part}" for part in LINKS)}
    if config.draft_heads:
        names |= {
            f"draft_heads.{part}"
            for part in ("start.weight", "query.weight", "key.weight", "inner.weight", "inner.bias", "outer.weight")
        }
    if config.parallel_adapter_rank:
        names |= {
            f"decoder.layers.{layer}.{adapted}_adapter.{half}.weight"
            for layer, adapted, half in itertools.product(range(2), ADAPTED, ("down", "up"))
        }
    return names


def load(directory):
    """The PyTorch model of an hf export, which generates in all modes."""
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True).eval()
    model.config.trained_modes = None
    return model


def sources(count, vocab, seed=0):
    """Sentences of 1 to 16 random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, vocab, rng.integers(1, LONGEST + 1)).tolist() for _ in range(count)]


def padded(lines, side="right"):
    width = max(map(len, lines)) + 2
    rows = [[BOS, *line, EOS] for line in lines]
    fill = [[PAD] * (width - len(row)) for row in rows]
    return np.array([f + r if side == "left" else r + f for f, r in zip(fill, rows, strict=True)])


def bare(ids):
    """Tokens between bos and eos of each row; asserts that only padding follows eos."""
    inner = []
    for row in ids.tolist():
        end = row.index(EOS)
        assert row[0] == BOS
        assert set(row[end + 1 :]) <= {PAD}
        inner.append(row[1:end])
    return inner
