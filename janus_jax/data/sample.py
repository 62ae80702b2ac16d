"""Text to try an experiment with before you have your own: the built-in corpus, in the files that the experiment reads."""

import os
from collections.abc import Sequence
from pathlib import Path

from janus_jax import files
from janus_jax.config import DataConfig
from janus_jax.data import demo
from janus_jax.data.errors import DataError
from janus_jax.data.sources import DEMO_SEED, SPLITS


def write_sample(config: DataConfig) -> list[Path]:
    """Writes phrases of the built-in corpus to the files of each split that `config` names.

    Args:
      config: `source`, "parallel" or "tsv", says what the files hold. `demo_sizes` has the number of pairs of each split.

    Returns:
      The files, in the order of the splits.

    Raises:
      DataError: `source` is another one, or a file is there already; nothing is written then.
      OSError: a file cannot be written.
    """
    if config.source not in ("parallel", "tsv"):
        raise DataError(f'config.data.source={config.source}: a sample is for the sources "parallel" and "tsv"')
    splits = demo.generate(config.source_lang, config.target_lang, config.demo_sizes, DEMO_SEED)
    texts: dict[Path, bytes] = {}
    for split, pairs in zip(SPLITS, splits, strict=True):
        name = getattr(config, split)
        if not name or not pairs:
            continue
        if config.source == "tsv":
            texts[Path(name)] = _lines(["\t".join(pair) for pair in pairs])
        else:
            for side, lang in enumerate((config.source_lang, config.target_lang)):
                texts[Path(f"{name}.{lang}")] = _lines([pair[side] for pair in pairs])
    for path in texts:
        if os.path.lexists(path):
            raise DataError(f"{path} is there already: a sample replaces no file; leave out --write_sample")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, text)
    return list(texts)


def _lines(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
