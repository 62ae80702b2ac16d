"""A playground with a tiny model of random weights, for all modes."""

import jax
import pytest

from janus_jax.config import resolve
from janus_jax.decode import Generator
from janus_jax.play.playground import Playground
from janus_jax.types import Specials
from tests import tiny


class Words:
    """A tokenizer of syllables: "ab", "ac", ...; a word is one or more of them, and a capital begins it."""

    specials = Specials()
    vocab_size = tiny.VOCAB

    def encode(self, line):
        return [5 + (ord(a) * 7 + ord(b)) % (self.vocab_size - 5) for word in line.split() for a, b in _pairs(word)]

    encode_inside = encode

    def encode_batch(self, lines):
        return [self.encode(line) for line in lines]

    def pieces(self, ids):
        return [("▁" if i % 3 else "") + f"t{i}<" if i >= 5 else f"<{i}>" for i in ids]

    def decode(self, ids):
        return "".join(self.pieces([i for i in ids if i >= 5])).replace("▁", " ").strip()

    def decode_batch(self, ids):
        return [self.decode(line) for line in ids]


def _pairs(word):
    return zip(word[::2], [*word[1::2], "a"], strict=False)


@pytest.fixture(scope="package")
def generator():
    net, params = tiny.model(ctc_ratio=1.5, dag_ratio=2.0)
    # Ten times the usual spread: clear preferences.
    params = jax.tree.map(lambda x: x * 10 if x.ndim == 2 else x, params)
    decode = {
        "ar": {"max_length_a": 1.0, "max_length_b": 4},
        "speculative": {"draft_from": "nar"},
        "infill": {"draft": "always"},
    }
    return Generator(
        net, params, Words(), resolve({"decode": decode}).decode, max_source_length=18, max_target_length=24
    )


@pytest.fixture(scope="package")
def playground(generator):
    return Playground(generator)
