"""The model card (README.md) of an exported model: how to run it, and what it was trained on."""

import json
from typing import Any

from janus_jax import config as config_lib
from janus_jax.checkpoint import Loaded
from janus_jax.config import CtcDecode, DagDecode
from janus_jax.decode import trained_modes

_CARD = """\
---
library_name: transformers
tags: [janus, encoder-decoder, non-autoregressive]
---

# {name}

An encoder-decoder that generates {ways} (JANUS, Liang et al., EMNLP 2022). Exported from janus_jax {version}.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
batch = tokenizer(["Some text."], return_tensors="pt", padding=True)
{calls}```

`trust_remote_code=True` runs the two Python files of this directory, which need only transformers and PyTorch.

| | |
|---|---|
| objective | {objective}: trained for {modes} |
| training steps | {steps} |
| config | {hash} (`config.json` holds it under the key `janus_jax`) |
| data | {data} |
| size | {parameters:,} parameters; {vocab} tokens; sources of at most {source} tokens and targets of at most {target} |

`python -m janus_jax.convert import --from=hf --model={name} --output=DIR` restores the janus_jax checkpoint.
"""
_CALLS = {
    "ar": """
# Autoregressively, with the settings in generation_config.json:
ids = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
""",
    "nar": """
# Non-autoregressively, in {passes} passes of the decoder for each of {length_beam} lengths:
ids = model.generate_nar(batch["input_ids"], batch["attention_mask"], passes={passes}, length_beam={length_beam})
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
""",
    "ctc": """
# By CTC, in one pass of the decoder and a search for the most probable text:
ids = model.generate_ctc(batch["input_ids"], batch["attention_mask"], {ctc})
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
""",
    "dag": """
# Along a path through a graph (DAG), in one pass of the decoder:
ids = model.generate_dag(batch["input_ids"], batch["attention_mask"], {dag})
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
""",
    "heads": """
# The tokens of greedy search in fewer passes, by draft heads:
ids = model.generate_speculative(batch["input_ids"], batch["attention_mask"])
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
""",
}

# The parallel modes that an export has, and their names in its card.
PARALLEL = {"nar": "mask-predict", "ctc": "CTC", "dag": "DAG"}


def model_card(name: str, loaded: Loaded, vocab_size: int, parameters: int) -> str:
    """Markdown for an hf export.

    Args:
      name: the directory's name.
      loaded: the checkpoint.
      vocab_size: number of tokens.
      parameters: number of parameters, the embedding counted once.
    """
    config = loaded.config
    data, modes = config.data, trained_modes(config)
    ways = ["a token at a time (autoregressively)"] if "ar" in modes else []
    if parallel := [name for mode, name in PARALLEL.items() if mode in modes]:
        ways.append(f"many tokens at once ({', '.join(parallel)})")
    calls = [
        call.format(
            passes=config.decode.nar.passes,
            length_beam=config.decode.nar.length_beam,
            ctc=_ctc_arguments(config.decode.ctc),
            dag=_dag_arguments(config.decode.dag),
        )
        for mode, call in _CALLS.items()
        if mode in modes or (mode == "heads" and "heads" in config_lib.trained_terms(config))
    ]
    return _CARD.format(
        name=name,
        version=loaded.about.get("janus_jax", ""),
        ways=" or ".join(ways),
        calls="".join(calls),
        objective=config.objective.name,
        modes=", ".join(modes),
        steps=loaded.step,
        hash=config_lib.config_hash(config),
        data=_data(loaded),
        parameters=parameters,
        vocab=vocab_size,
        source=data.max_source_length,
        target=data.max_target_length,
    )


def _ctc_arguments(ctc: CtcDecode) -> str:
    """The arguments of `generate_ctc` that equal the settings of mode ctc."""
    arguments: dict[str, Any] = {"num_beams": ctc.beam}
    if ctc.beam > 1:
        arguments["ctc_tokens"] = ctc.tokens
    if ctc.blank_penalty:
        arguments["blank_penalty"] = ctc.blank_penalty
    return _python(arguments | ({} if ctc.rerank == "none" else {"rerank": ctc.rerank}))


def _dag_arguments(dag: DagDecode) -> str:
    """The arguments of `generate_dag` that equal the settings of mode dag."""
    arguments: dict[str, Any] = {"search": dag.search, "length_beta": dag.length_beta}
    if dag.search == "lookahead":
        arguments["beta"] = dag.beta
    if dag.search == "beam":
        arguments |= {"num_beams": dag.beam, "dag_tokens": dag.tokens}
    return _python(arguments | ({} if dag.rerank == "none" else {"rerank": dag.rerank}))


def _python(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in arguments.items())


def _data(loaded: Loaded) -> str:
    if loaded.about.get("made_by") == "import":
        return f"not recorded here; imported from {loaded.about.get('from')}"
    data = loaded.config.data
    corpus = {"tfds": data.tfds_name, "demo": "built-in corpus"}.get(data.source, "the author's files")
    pair = "" if data.source == "text" else f", {data.source_lang} to {data.target_lang}"
    return f"{data.source}: {corpus}{pair}"
