"""The encoder-decoder. Other packages use `Janus` and nothing else of it."""

from janus_jax.model.janus import Janus, constrain_logits, draft_vocab, output_classes, padded_vocab, project

__all__ = ["Janus", "constrain_logits", "draft_vocab", "output_classes", "padded_vocab", "project"]
