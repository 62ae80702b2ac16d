"""Tokenizers."""

from janus_jax.text.tokenizer import Tokenizer, TokenizerError, load, train

__all__ = ["Tokenizer", "TokenizerError", "load", "train"]
