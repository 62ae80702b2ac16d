"""What a step costs: parameters and floating-point operations of the matrix products.

Legend: B sentences, S source length, T target length, U AR slots, M masked tokens at most, D model width, F feed-forward
width, V' padded vocabulary, rows = decoder rows of a sentence.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax

from janus_jax.config import Config, ModelConfig, objective_terms
from janus_jax.model.janus import padded_vocab

TRAINING = 3  # forward once, backward twice


def parameter_count(params: Any) -> int:
    """Numbers in a parameter tree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def step_flops(
    config: Config, sentences: int, source: int, target: int, masked: int, terms: Collection[str] | None = None
) -> float:
    """Operations of a training step's matrix products, padding included, attention products too.

    Args:
      config: model (with its vocabulary size) and objective.
      sentences, source, target, masked: B, S, T, M of the batch.
      terms: of the loss, which the step computes; None: all of the objective.
    """
    m = config.model
    d, f = m.d_model, m.ffn_dim
    terms = set(objective_terms(config.objective) if terms is None else terms)
    ar = bool(terms & {"ar", "kl_ar_nar", "kl_ar_aux", "kl_ar_ctc"})
    aux = bool(terms & {"aux", "kl_nar_aux", "kl_ar_aux"})
    nar = aux or bool(terms & {"nar", "kl_ar_nar"})
    slots = target if m.ar_start == "eos" else target - 1
    content_ar = slots if ar else 0
    query_ar = slots if ar and m.ar_stream == "query" else 0
    nar_rows, true_rows = (target if nar else 0), (masked if aux else 0)
    content, rows = content_ar + nar_rows + true_rows, content_ar + query_ar + nar_rows + 2 * true_rows
    ctc = m.ctc_slots(source) if terms & {"ctc", "kl_ar_ctc"} else 0
    content, rows = content + ctc, rows + ctc
    read = content_ar + (masked if nar else 0) + true_rows + ctc
    per_row = 4 * d * d + 2 * d * f  # queries and outputs of both attentions, feed-forward
    encoder = m.encoder_layers * source * (4 * d * d + 2 * d * f + 2 * source * d)
    pairs = (
        (content_ar + query_ar) * content_ar + nar_rows * nar_rows + 2 * true_rows * (nar_rows + true_rows) + ctc * ctc
    )
    layer = rows * per_row + content * 2 * d * d + 2 * d * (pairs + rows * source)
    last_pairs = (
        content_ar * content_ar + (masked * nar_rows if nar else 0) + true_rows * (nar_rows + true_rows) + ctc * ctc
    )
    last = read * per_row + content * 2 * d * d + 2 * d * (last_pairs + read * source)
    cross = m.decoder_layers * source * 2 * d * d
    # A token's CTC row is projected once more beside its AR row.
    logits = (read + (content_ar if "kl_ar_ctc" in terms else 0)) * d * padded_vocab(m)
    passes = config.objective.encoder_passes if ar and (nar or ctc) else 1
    return 2 * TRAINING * sentences * (passes * (encoder + cross) + (m.decoder_layers - 1) * layer + last + logits)


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
