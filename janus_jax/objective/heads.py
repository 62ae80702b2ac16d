"""The loss of draft heads: cross-entropy of what the AR half would emit behind the next token.

Legend: B sentences, U slots behind which heads draft (bos, and all tokens of a target but the last), k heads, D model
width, V' padded vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from janus_jax.config import ObjectiveConfig
from janus_jax.model import Janus, draft_vocab
from janus_jax.objective.logits import chunks_of, likeliest, logits_of, merge_rows, split_rows, table_copies
from janus_jax.objective.sentence import SentenceTerms
from janus_jax.objective.terms import divisor_of, term
from janus_jax.types import Batch, Encoded, Params

_DECAY = 0.8  # weight of a head relative to the one before it, as in Medusa (arXiv 2401.10774)


def loss(
    net: Janus,
    objective: ObjectiveConfig,
    params: Params,
    encoded: Encoded,
    rows: jax.Array,
    batch: Batch,
    divisors: Mapping[str, jax.Array],
) -> SentenceTerms:
    """The term `heads`, and the metric `heads/accepted`: how many heads in a row are right.

    It is the mean over the tokens behind which a round may begin: bos, and all tokens but eos.

    A label is not the token of the target but the likeliest one of the AR row at its place, because the AR half verifies
    drafts. A label that no head can choose (`draft_vocab`) has no loss, and no head is right there. Neither the encoder, the AR
    rows nor the token table learn from this loss.

    Args:
      net, objective, params: the model, the objective and the parameters.
      encoded: the sources.
      rows: [B, U, D] AR rows; with an eos start [B, U+1, D], of which the first predicts bos.
      batch: one micro-batch.
      divisors: `joint.batch_divisors` of the step's batch.
    """
    table = jax.lax.stop_gradient(params["embed_tokens"]["embedding"])
    encoded, rows = jax.lax.stop_gradient((encoded, rows))
    tokens, behind = batch.target[:, :-1], batch.target[:, 1:]
    rows = rows[:, -behind.shape[1] :]  # without the one that predicts bos, if there is one
    choices = likeliest(rows, table, net.config, objective.projection_rows, net.dtype)
    fixed = params | {"embed_tokens": {"embedding": table}}
    drafted = net.draft_rows(fixed, encoded, rows[:, :-1], tokens)
    slots, heads = drafted.shape[1:3]
    place = jnp.arange(slots)[:, None] + jnp.arange(heads)  # [U, k], the row that judges what a head predicts
    judge = jnp.minimum(place, slots - 1)
    labels = choices[:, judge]
    frequent = draft_vocab(net.config)
    real = (place < slots) & (behind != net.specials.pad)[:, judge] & (labels < frequent)
    flat = drafted.reshape(len(drafted), slots * heads, -1)
    nll, right = _of_rows(net, objective, flat, labels.reshape(len(drafted), -1), table[:frequent])
    weighted = jnp.where(real, nll.reshape(real.shape), 0.0) * _DECAY ** jnp.arange(heads)
    accepted = jnp.cumprod(real & right.reshape(real.shape), axis=-1)
    return SentenceTerms(
        {"heads": weighted.sum() / divisors[term("heads").divisor]},
        {"heads/accepted": accepted.sum() / divisors[divisor_of("heads/accepted")]},
    )


def _of_rows(
    net: Janus, objective: ObjectiveConfig, rows: jax.Array, labels: jax.Array, table: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of rows [B, X, D]: -log p[label], and whether the label [B, X] is the likeliest token; both [B, X]."""
    tables = table_copies(table, rows.shape[0])

    def of_part(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(part[0], tables, net.config, net.dtype)
        chosen = jnp.take_along_axis(logits, jnp.minimum(part[1], logits.shape[-1] - 1)[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen, chosen >= logits.max(axis=-1)

    chunks = chunks_of(rows.shape[0] * rows.shape[1], objective.projection_rows)
    parts = split_rows(rows, chunks, 0), split_rows(labels, chunks, 0)
    # The backward pass computes the logits of each chunk again, so that they are not kept.
    values = jax.lax.map(jax.checkpoint(of_part), parts)
    return jax.tree.map(lambda x: merge_rows(x, *rows.shape[:2]), values)
