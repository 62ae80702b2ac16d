"""What a step costs: parameters and floating-point operations of the matrix products.

Legend: B sentences, S source length, T target length, M masked tokens at most, D model width, F feed-forward
width, V' padded vocabulary, rows = decoder rows of a sentence.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.config import Config, ModelConfig, objective_terms, only_terms, trains_heads_alone
from janus_jax.model.draft_heads import draft_query_width
from janus_jax.model.families import row_layout, with_attended
from janus_jax.model.janus import draft_vocab, padded_vocab
from janus_jax.model.layout import RowLayout
from janus_jax.objective.terms import own_term, read_families, term
from janus_jax.types import Batch, Specials

TRAINING = 3  # forward once, backward twice


def parameter_count(params: Any) -> int:
    """Numbers in a parameter tree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def layout_of_shapes(
    config: ModelConfig, families: Collection[str], source: int, target: int, masked: int
) -> RowLayout:
    """The rows of a sentence in the joint pass, as shapes: S, T and M are numbers, and nothing is computed."""
    tokens = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    batch = Batch(tokens((1, source)), tokens((1, target)), tokens((1, masked)), tokens((1,)), tokens((1,)))
    return jax.eval_shape(lambda batch: row_layout(batch, config, Specials(), families), batch)


def step_flops(
    config: Config, sentences: int, source: int, target: int, masked: int, terms: Collection[str] | None = None
) -> float:
    """Operations of a training step's matrix products, padding included, attention products too.

    The first passes of `glancing` and `nar_correction` count as well; they have no gradients.

    Args:
      config: model (with its vocabulary size) and objective.
      sentences, source, target, masked: B, S, T, M of the batch.
      terms: of the loss, which the step computes; None: all of the objective, or of draft heads if a run trains them alone.

    Raises:
      ValueError: a term that is not in `objective.terms`.
    """
    m = config.model
    d, f = m.d_model, m.ffn_dim
    terms = terms or only_terms(config) or objective_terms(config.objective)
    families = with_attended(read_families(terms))

    def layout_of(wanted: Collection[str]) -> RowLayout:
        return layout_of_shapes(m, wanted, source, target, masked)

    layout = layout_of(families)
    encoder = m.encoder_layers * source * (4 * d * d + 2 * d * f + 2 * source * d)
    cross = m.decoder_layers * source * 2 * d * d
    logits = (layout.read_rows + _rows_projected_again(layout, terms)) * d * padded_vocab(m)
    passes = config.objective.encoder_passes if "ar" in families and len(families) > 1 else 1
    joint = passes * (encoder + cross) + _decoder_operations(layout, m, source) + logits
    # For heads alone nothing else has gradients; the logits of AR rows are then those of their labels.
    total = (1 if trains_heads_alone(config) else TRAINING) * joint
    for family in _first_passes(config, families):
        alone = layout_of((family,))
        # The path of DAG needs the logits of all rows; then those on the path are projected again.
        projected = alone.read_rows + (target if family == "dag" else 0)
        total += cross + _decoder_operations(alone, m, source) + projected * d * padded_vocab(m)
    if "heads" in terms:
        rows, labels = (target - 1) * m.draft_heads, 0 if tuple(terms) == ("heads",) else target - 1
        # Neither the token table nor the encoder learns from heads, which saves a third of the products with them.
        total += (
            TRAINING * rows * d * (8 * d + 3 * draft_query_width(m))
            + 2 * rows * d * (draft_vocab(m) + 2 * source)
            + d * labels * padded_vocab(m)
        )
    return 2 * sentences * total


def _decoder_operations(layout: RowLayout, m: ModelConfig, source: int) -> int:
    """Multiplications for one sentence in the decoder's layers and links, without the keys and values of the source."""
    d = m.d_model

    def layer(last: bool) -> int:
        rows = layout.read_rows if last else layout.rows
        per_row = 4 * d * d + 2 * d * m.ffn_dim  # queries and outputs of both attentions, feed-forward
        pairs = layout.attention_pairs(last) + rows * source
        return rows * per_row + layout.memory_rows * 2 * d * d + 2 * d * pairs + _adapter_operations(layout, m, last)

    return (m.decoder_layers - 1) * layer(last=False) + layer(last=True) + _link_operations(layout, m)


def _first_passes(config: Config, families: Collection[str]) -> tuple[str, ...]:
    """The families whose rows a step computes once more, before the joint pass."""
    objective = config.objective

    def has_one(family: str) -> bool:
        if family == "nar":
            return objective.nar_correction != 0
        return objective.glancing != 0 and term(own_term(family)).kind == "sentence"

    return tuple(family for family in families if has_one(family))


def _adapter_operations(layout: RowLayout, m: ModelConfig, last: bool = False) -> int:
    """Multiplications of a decoder layer's adapters: of the parallel rows' queries, outputs, feed-forward, keys and values."""
    first = layout.parallel(last)
    queries = (layout.read_rows if last else layout.rows) - first.queries
    memory = layout.memory_rows - first.memory
    return m.parallel_adapter_rank * (queries * (8 * m.d_model + 2 * (m.d_model + m.ffn_dim)) + memory * 4 * m.d_model)


def _link_operations(layout: RowLayout, m: ModelConfig) -> int:
    """Multiplications of the links of DAG rows: queries, keys and mixture weights, and the products of all pairs."""
    rows = sum(group.rows for group in layout.groups if group.family == "dag")
    return rows * 2 * m.d_model * (2 * m.d_model + m.heads) + rows * rows * m.d_model


def _rows_projected_again(layout: RowLayout, terms: Collection[str]) -> int:
    """Rows of a family with a sentence's likelihood that a divergence projects a second time, one beside each AR row."""
    slots = sum(group.read_rows for group in layout.groups if group.family == "ar")
    divergences = [term(name).families for name in terms if term(name).kind == "divergence"]
    again = {family for sides in divergences for family in sides if term(own_term(family)).kind == "sentence"}
    return slots * len(again)


def mask_predict_flops(
    m: ModelConfig, sentences: int, source: int, target: int, candidates: int, open_slots: Sequence[int]
) -> float:
    """Operations of mask-predict's matrix products, the encoder's and attention's too.

    Args:
      m: the model.
      sentences, source, target: B, S, T.
      candidates: lengths tried a sentence.
      open_slots: for each decoder pass, how many slots of a target it fills: only their last-layer rows and logits count.
    """
    d, f = m.d_model, m.ffn_dim
    per_row = 4 * d * d + 2 * d * f
    encoder = m.encoder_layers * source * (per_row + 2 * source * d)
    cross = m.decoder_layers * source * 2 * d * d
    content = target * 2 * d * d
    layer = target * per_row + content + 2 * d * target * (target + source)
    passes = 0
    for slots in open_slots:
        last = slots * per_row + content + 2 * d * slots * (target + source)
        passes += (m.decoder_layers - 1) * layer + last + slots * d * padded_vocab(m)
    return 2 * sentences * (encoder + cross + candidates * passes)
