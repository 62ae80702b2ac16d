"""The tokenizer of a prepared dataset: a given one, or one trained on the text."""

from collections.abc import Callable
from pathlib import Path

from janus_jax import checkpoint, text
from janus_jax.config import Config
from janus_jax.data import clean

Log = Callable[[str], None]


def given_tokenizer(config: Config) -> str:
    """Where a tokenizer is to be taken from; empty: one is to be trained."""
    return config.text.model or config.init_from


def tokenizer_of_pairs(path: Path, count: int, config: Config, log: Log) -> text.Tokenizer:
    """The given tokenizer, or one trained on both sides of evenly spread pairs of the `count` in a cleaned file."""
    lines: list[str] = []
    if not given_tokenizer(config):
        wanted = min(count, max(1, config.text.train_lines // 2))
        chosen = {i * count // wanted for i in range(wanted)} if wanted < count else None
        with open(path, encoding="utf-8", newline="\n") as file:
            for i, (_, *sides) in enumerate(clean.read_clean(file)):
                if chosen is None or i in chosen:
                    lines += sides
    return tokenizer_of_lines(lines, config, log)


def tokenizer_of_lines(lines: list[str], config: Config, log: Log) -> text.Tokenizer:
    """The given tokenizer, a file's or a checkpoint's, or one trained on these lines."""
    if given := given_tokenizer(config):
        if not config.text.model or checkpoint.is_checkpoint(given):
            return text.load(checkpoint.tokenizer(given))
        return text.read(given)
    log(f"training a {config.text.model_type} tokenizer of {config.text.vocab_size} tokens on {len(lines)} lines")
    return text.train(lines, config.text)
