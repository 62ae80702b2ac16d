"""The folder on which bad input is tried: good text, data, a checkpoint, an export, which no case may change."""

import dataclasses
import hashlib
import json
from pathlib import Path

from janus_jax import checkpoint, text
from janus_jax.config import TextConfig, resolve
from janus_jax.convert.exporting import export_model
from janus_jax.data import demo, prepare
from janus_jax.model import Janus
from tests import tiny

LINES = 6  # of in.txt and of the files beside it
EXPERIMENT = """
from janus_jax.config import default_config

SETTINGS = {settings}


def get_config():
    config = default_config()
    config.update_from_flattened_dict(SETTINGS)
    return config
"""
SETTINGS = {
    "text.vocab_size": 120, "text.byte_fallback": False, "text.character_coverage": 1.0, "data.source": "parallel",
    "data.source_lang": "de", "data.target_lang": "en", "data.train": "fixed/train", "data.valid": "fixed/dev", "data.test": "",
    "data.prepared": "fixed/prepared", "data.buckets": 1, "data.tokens_per_batch": 512, "data.max_source_length": 32,
    "data.max_target_length": 32, "model.d_model": 8, "model.ffn_dim": 16, "model.heads": 2, "model.encoder_layers": 1,
    "model.decoder_layers": 1, "model.max_positions": 64, "model.length_classes": 64, "model.ctc_ratio": 2.0,
    "objective.name": "janus_all", "train.steps": 4, "train.eval_every": 4, "train.checkpoint_every": 2,
    "optimizer.warmup_steps": 2,
}  # fmt: skip


def build(folder: Path) -> Path:
    """Fills `folder`, which must be the current directory, with `fixed/`; returns it."""
    fixed = folder / "fixed"
    fixed.mkdir()
    pairs = dict(zip(("train", "dev"), demo.generate("de", "en", (80, LINES, 0), 0), strict=False))
    for name, split in pairs.items():
        for side, language in enumerate(("de", "en")):
            (fixed / f"{name}.{language}").write_text("".join(f"{pair[side]}\n" for pair in split))
    sources, targets = zip(*pairs["dev"], strict=True)
    gaps = [f"{target.split()[0]} <mask><mask>" for target in targets]
    (fixed / "in.txt").write_text("".join(f"{source}\n" for source in sources))
    (fixed / "gaps.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in zip(sources, gaps, strict=True)))
    objects = [{"source": s, "target": t} for s, t in zip(sources, gaps, strict=True)]
    (fixed / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in objects))
    trace = {"line": 1, "source": sources[0], "text": targets[0], "score": -1.0, "passes": []}
    (fixed / "trace.jsonl").write_text(json.dumps(trace) + "\n")
    (fixed / "mine.py").write_text(EXPERIMENT.format(settings=repr(SETTINGS)))
    _write_models(fixed, list(sources) + list(targets))
    return fixed


def _write_models(fixed: Path, lines: list[str]) -> None:
    nested: dict[str, dict] = {}
    for name, value in SETTINGS.items():
        group, key = name.split(".")
        nested.setdefault(group, {})[key] = value
    config = resolve(nested)
    prepare(config, log=lambda *_: None)
    tokenizer = text.load((fixed / "prepared/tokenizer.model").read_bytes())
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    params = tiny.drawn(Janus(config.model, tokenizer.specials))
    about = {"made_by": "test"}
    checkpoint.write(fixed / "run/checkpoints/4", params, config, tokenizer.to_bytes(), about)
    bpe = text.train(lines, TextConfig(model_type="byte_bpe", vocab_size=300))
    model = dataclasses.replace(config.model, vocab_size=bpe.vocab_size)
    params = tiny.drawn(Janus(model, bpe.specials))
    checkpoint.write(fixed / "bpe", params, dataclasses.replace(config, model=model), bpe.to_bytes(), about)
    export_model(str(fixed / "bpe"), "hf", fixed / "export")


def fingerprint(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder, and the kind of what is no regular file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file():
            found[name] = f"link {path.readlink()}" if path.is_symlink() else "folder" if path.is_dir() else "special"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
