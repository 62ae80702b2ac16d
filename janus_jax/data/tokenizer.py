"""The tokenizer of a prepared dataset: an existing one, or one trained on the text."""

from collections.abc import Callable
from pathlib import Path

from janus_jax import checkpoint, text
from janus_jax.config import Config
from janus_jax.data import clean
from janus_jax.data.errors import DataError

Log = Callable[[str], None]


def tokenizer_path(config: Config) -> str:
    """The path of the tokenizer to use, a file or a checkpoint; empty: train one."""
    return config.text.model or config.init_from


def check_tokenizer_path(config: Config) -> None:
    """Raises DataError if the existing tokenizer is nowhere, before any text is read."""
    if (path := tokenizer_path(config)) and not Path(path).exists():
        setting = "text.model" if config.text.model else "init_from"
        raise DataError(
            f"config.{setting}: no such file or directory: {path}, whose tokenizer is to be used; train that model first, or "
            f"check the path, which is relative to {Path.cwd()}"
        )


def tokenizer_of_pairs(path: Path, count: int, config: Config, log: Log) -> text.Tokenizer:
    """The existing tokenizer, or one trained on both sides of pairs that are spread evenly over a cleaned file.

    Args:
      path: the cleaned file.
      count: pairs in it.
      config: names the existing tokenizer, or the settings of training.
      log: receives lines for the user.
    """
    lines: list[str] = []
    if not tokenizer_path(config):
        number = min(count, max(1, config.text.train_lines // 2))
        chosen = {i * count // number for i in range(number)} if number < count else None
        with open(path, encoding="utf-8", newline="\n") as file:
            for i, (_, *sides) in enumerate(clean.read_clean(file)):
                if chosen is None or i in chosen:
                    lines += sides
    return tokenizer_of_lines(lines, config, log)


def tokenizer_of_lines(lines: list[str], config: Config, log: Log) -> text.Tokenizer:
    """The existing tokenizer, of a file or of a checkpoint, or one trained on these lines."""
    if path := tokenizer_path(config):
        if not config.text.model or checkpoint.is_checkpoint(path):
            setting = "text.model" if config.text.model else "init_from"
            try:
                return text.load(checkpoint.tokenizer(path), f"config.{setting}: the tokenizer of {path}")
            except checkpoint.CheckpointError as error:
                raise checkpoint.CheckpointError(f"config.{setting}: {error}") from error
        return text.read(path)
    log(f"training a {config.text.model_type} tokenizer of {config.text.vocab_size} tokens on {len(lines)} lines")
    tokenizer = text.train(lines, config.text)
    if tokenizer.vocab_size < config.text.vocab_size:
        log(
            f"warning: config.text.vocab_size: {config.text.vocab_size} is too large for this text; the tokenizer has "
            f"{tokenizer.vocab_size} tokens"
        )
    return tokenizer
