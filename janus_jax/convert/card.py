"""The model card (README.md) of an exported model: how to run it, its scores, how it was made, its limits."""

import json
from collections.abc import Sequence
from typing import Any

from janus_jax import checkpoint
from janus_jax import config as config_lib
from janus_jax.checkpoint import Loaded
from janus_jax.config import Config, CtcDecode, DagDecode, NarDecode
from janus_jax.convert import hub
from janus_jax.convert.scores import Score
from janus_jax.data.sources import glge_marks
from janus_jax.decode import trained_modes

# What the code of a card needs, in the versions that it is tested with: those of requirements-convert.txt.
PACKAGES = ("torch==2.13.0", "transformers==5.23.0")
# The parallel modes that an export has, and their names in its card.
PARALLEL = {"nar": "mask-predict", "ctc": "CTC", "dag": "DAG"}
_CARD = """\
---
{metadata}
---

# {name}

An encoder-decoder that generates {ways} (JANUS, Liang et al., EMNLP 2022){task}. Exported from janus_jax {version}.

{license}

## Use

```bash
pip install {packages}
```

Each block runs as it stands. It loads `{name}`: a directory, or a model on the Hub. `trust_remote_code=True` runs the two
Python files of this model. They and the tokenizer need nothing but the packages above.

{uses}
## Scores

{scores}

## How it was made

| | |
|---|---|
{facts}

`config.json` holds all settings of the training under the key `janus_jax`. These differ from the defaults:

```text
{settings}
```

`python -m janus_jax.convert import --from=hf --model={directory} --output=DIR` restores the janus_jax checkpoint.

## Limits

{limits}
"""
_USE = """\
### {title}

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained({name}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({name}, trust_remote_code=True)
texts = ["Some text."]{language}
batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length={length})
ids = model.{call}
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
```
"""


def model_card(
    name: str,
    loaded: Loaded,
    shared: Config,
    vocab_size: int,
    parameters: int,
    options: hub.CardOptions,
    scores: Sequence[Score],
) -> str:
    """Markdown for an hf export.

    Args:
      name: the directory's name.
      loaded: the checkpoint.
      shared: its configuration as the export holds it, without paths.
      vocab_size: number of tokens.
      parameters: number of parameters, the embedding counted once.
      options: of the user.
      scores: of the checkpoint.
    """
    modes, languages = trained_modes(loaded.config), hub.languages(loaded)
    parallel = [title for mode, title in PARALLEL.items() if mode in modes]
    ways = ["a token at a time (autoregressively)"] if "ar" in modes else []
    ways += [f"many tokens at once ({', '.join(parallel)})"] if parallel else []
    repo, source = options.repo_id or name, next(iter(languages.values()), "")
    uses = [
        _USE.format(
            title=title,
            name=json.dumps(repo, ensure_ascii=False),
            language=f"  # in {source}" if source else "",
            length=min(loaded.config.data.max_source_length, loaded.config.model.max_positions),
            call=call,
        )
        for title, call in _calls(loaded.config)
    ]
    return _CARD.format(
        metadata=hub.metadata(repo.rpartition("/")[2], options, list(languages), bool(parallel), scores),
        name=repo,
        directory=name,
        ways=" or ".join(ways),
        task=f", from {' to '.join(languages.values())}" if len(languages) == 2 else "",
        version=loaded.about.get("janus_jax", ""),
        license=_license(options.license),
        packages=" ".join(PACKAGES),
        uses="\n".join(uses),
        scores=_table(scores),
        facts="\n".join(
            f"| {fact} | {value} |" for fact, value in _facts(loaded, shared, vocab_size, parameters).items()
        ),
        settings=_settings(shared),
        limits="\n".join(f"- {limit}" for limit in _limits(loaded, languages)),
    )


def _calls(config: Config) -> list[tuple[str, str]]:
    """A title and a call of the model for each way of generating that it was trained for."""
    modes, ar = trained_modes(config), config.decode.ar
    calls = []
    if "ar" in modes:
        beams = {"num_beams": ar.beam if ar.beam > 1 else 5}
        # Otherwise generation_config.json has the rule.
        beams |= {"early_stopping": "never"} if ar.beam == 1 or ar.sample else {}
        search = ", do_sample=False" if ar.sample else ""
        calls += [
            ("Autoregressively, by greedy search", f"generate(**batch, num_beams=1{search})"),
            ("Autoregressively, by beam search", f"generate(**batch, {_python(beams)}{search})"),
        ]
        calls += [("Autoregressively, by sampling", "generate(**batch)")] if ar.sample else []
    if "nar" in modes:
        calls.append(("In parallel, by mask-predict", f"generate_nar(**batch, {_nar_arguments(config.decode.nar)})"))
    if "ctc" in modes:
        calls.append(("In parallel, by CTC", f"generate_ctc(**batch, {_ctc_arguments(config.decode.ctc)})"))
    if "dag" in modes:
        calls.append(
            (
                "In parallel, by a path through a graph (DAG)",
                f"generate_dag(**batch, {_dag_arguments(config.decode.dag)})",
            )
        )
    # Drafts of heads do not know these settings.
    if "heads" in config_lib.trained_terms(config) and not (ar.sample or ar.no_repeat_ngram):
        calls.append(("The tokens of greedy search in fewer passes, by draft heads", "generate_speculative(**batch)"))
    return calls


def _nar_arguments(nar: NarDecode) -> str:
    """The arguments of `generate_nar` that equal the settings of mode nar."""
    arguments: dict[str, Any] = {"passes": nar.passes, "length_beam": nar.length_beam}
    for name in ("lengths", "mask_schedule", "early_stop", "revise", "merge_repeats"):
        if getattr(nar, name) != getattr(NarDecode(), name):
            arguments[name] = getattr(nar, name)
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


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


def _license(name: str) -> str:
    if name in ("", "unknown"):
        return (
            "**No license is chosen yet.** Whoever uploads this model must choose one, with regard to the training data and to "
            "the model that it started from, and write it as `license: NAME` between the first two lines `---` of this file."
        )
    if name == "other":
        return (
            "License: see the file `LICENSE`. Whoever uploads this model must add that file, and `license_name` above."
        )
    return f"License of the weights: `{name}`."


def _table(scores: Sequence[Score]) -> str:
    if not scores:
        return "None was recorded with this checkpoint."
    lines = ["| text | metric | decoding in janus_jax | score |", "|---|---|---|---:|"]
    for score in scores:
        decoding = f"`{score.decoding}`" if score.decoding else "none: the given target"
        lines.append(f"| {score.split} | {score.name} | {decoding} | {score.value:.4g} |")
    return "\n".join(lines)


def _facts(loaded: Loaded, shared: Config, vocab_size: int, parameters: int) -> dict[str, str]:
    config, about, unknown = loaded.config, loaded.about, "not recorded"
    versions = about.get("versions") or {name: about[name] for name in ("jax",) if name in about}
    weights = "those of the last step"
    if "of_steps" in about:
        weights = f"the mean of the checkpoints of steps {', '.join(map(str, about['of_steps']))}"
    elif "moving_average" in checkpoint.origin(about):
        weights = "the moving average of the training steps"
    imported = "from" in about
    return {
        "objective": f"{config.objective.name}: trained for {', '.join(trained_modes(config))}",
        "training steps": str(loaded.step),
        "weights": f"imported from {about['from']}" if imported else weights,
        "start": "the weights of another checkpoint (`init_from`)"
        if config.init_from
        else unknown
        if imported
        else "random",
        "seeds": unknown if imported else f"train.seed {config.train.seed}, data.seed {config.data.seed}",
        "config": f"`{config_lib.config_hash(shared)}`, the hash of the settings in `config.json`",
        "data": _data(loaded),
        "digest of the data": f"`{about['data']}`" if about.get("data") else unknown,
        "git revision of janus_jax": f"`{about['revision']}`" if about.get("revision") else unknown,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or unknown,
        "size": f"{parameters:,} parameters; {vocab_size} tokens",
    }


def _data(loaded: Loaded) -> str:
    if "from" in loaded.about:
        return f"not recorded here; imported from {loaded.about['from']}"
    data = loaded.config.data
    names = {"tfds": data.tfds_name, "demo": "built-in corpus", "cmudict": "CMU Pronouncing Dictionary"}
    corpus = names.get(data.source, "the author's files")
    codes = hub.language_codes(loaded)
    return f"{data.source}: {corpus}" + (f", {' to '.join(codes)}" if codes else "")


def _settings(config: Config) -> str:
    defaults = dict(config_lib.leaves(Config()))
    changed = [f"{name} = {value!r}" for name, value in config_lib.leaves(config) if value != defaults[name]]
    return "\n".join(changed) or "none"


def _limits(loaded: Loaded, languages: dict[str, str]) -> list[str]:
    config, modes = loaded.config, trained_modes(loaded.config)
    data, model = config.data, config.model
    limits = [
        f"Trained on sources of at most {data.max_source_length} tokens and targets of at most {data.max_target_length}, bos and "
        f"eos counted. Longer texts were not tried. More than {model.max_positions} tokens are an error."
    ]
    if languages:
        limits.append(f"Languages: {' to '.join(languages.values())}. No other was trained.")
    else:
        limits.append("The languages of the training data are not recorded.")
    if data.source == "demo" and "from" not in loaded.about:
        limits.append("The built-in corpus holds phrases of dates, times, numbers and units. Other text gives noise.")
    if data.source == "text":
        limits.append("Trained to restore damaged text, and for no other task.")
    if loaded.one_space:
        limits.append(
            'White space was one space in training. Call `" ".join(text.split())` where a text may have more.'
        )
    if data.source == "glge":
        marks = " and ".join(f"`{mark}`" for mark in glge_marks(data))
        limits.append(f"Sources were trained without the marks of GLGE: take {marks} out of the text first.")
    for family in ("ctc", "dag"):
        if family in modes:
            ratio = getattr(model, f"{family}_ratio")
            limits.append(
                f"An output of `generate_{family}` has at most {ratio:g} tokens for each token of its source."
            )
    usable = [mode for mode in modes if mode in ("ar", *PARALLEL)]
    limits.append(
        f"Trained for the modes {', '.join(usable)}. A way of generating that needs another mode is an error."
    )
    others = (
        ["greedy search with drafts of parallel rows (`speculative`)"]
        if {"ar", *PARALLEL} & set(modes) > {"ar"}
        else []
    )
    others += ["mask-predict reranked by the AR half"] if {"ar", "nar"} <= set(modes) else []
    others += ["gaps filled by AUX rows (`infill`)"] if "infill" in modes else []
    if others:
        limits.append(f"Only janus_jax has: {', '.join(others)}.")
    limits.append(
        "Nothing was measured but what stands under Scores: neither other kinds of text than the training data, nor whether "
        "outputs are true, fair or safe."
    )
    return limits
