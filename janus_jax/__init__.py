"""janus_jax: one encoder-decoder that generates autoregressively and non-autoregressively (JANUS, EMNLP 2022)."""

__version__ = "0.2.0"
