"""janus_jax: one encoder-decoder that generates autoregressively and non-autoregressively (JANUS, EMNLP 2022)."""

import importlib.util

__version__ = "0.2.0"

if importlib.util.find_spec("jax") is None:
    # Under this package's own name: `python -m janus_jax.train` then says it in one line, without a traceback.
    raise ModuleNotFoundError(
        "this Python has no jax; activate the environment (source .venv/bin/activate), or pip install -r requirements.txt",
        name=__name__,
    )
