"""The terms of the loss, each a sum over rows (METHOD section 5). The caller divides by weights of the whole batch.

Legend: R rows in any number of axes, V' padded vocabulary, C length classes, B sentences.
"""

import jax
import jax.numpy as jnp


def nll_and_smoothing(logits: jax.Array, labels: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """Per row: -log p[label], and the mean over the V real entries of -log p.

    Args:
      logits: [R, V'] float32; columns >= vocab_size hold a large negative number.
      labels: [R] int32.
      vocab_size: V.
    """
    lse = jax.nn.logsumexp(logits, axis=-1)
    nll = lse - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    real = (
        logits if logits.shape[-1] == vocab_size else jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, 0.0)
    )
    return nll, lse - real.sum(-1) / vocab_size


def label_smoothed(nll: jax.Array, smoothing: jax.Array, eps: float) -> jax.Array:
    """(1 - eps) * nll + eps * smoothing, per row."""
    return (1.0 - eps) * nll + eps * smoothing


def symmetric_kl(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """Per row 0.5 * sum_v (P - Q)(log P - log Q); [R, V'] twice -> [R].

    The normalisers of log P and log Q drop out, because P - Q sums to zero.
    """
    difference = jax.nn.softmax(p_logits, axis=-1) - jax.nn.softmax(q_logits, axis=-1)
    return 0.5 * (difference * (p_logits - q_logits)).sum(-1)


def length_nll(logits: jax.Array, lengths: jax.Array) -> jax.Array:
    """Cross-entropy of the length head per sentence; logits [B, C], lengths [B] with bos and eos, capped at C - 1."""
    classes = jnp.minimum(lengths, logits.shape[-1] - 1)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=-1)[:, 0]
