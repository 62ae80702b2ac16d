"""Architecture of a JANUS encoder-decoder for transformers, and generation settings that equal those of janus_jax."""

import math
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

_CHOICES = {
    "norm": ("post", "pre"),
    "activation": ("relu", "gelu"),
    "ar_stream": ("query", "content"),
    "ar_slot_position": ("target", "input"),
    "ar_start": ("bos", "eos"),
    "ctc_input": ("mask", "source", "encoder"),
    "ctc_positions": ("shared", "own"),
}


class JanusConfig(PretrainedConfig):
    """One encoder-decoder that generates autoregressively and by mask-predict; with a `ctc_ratio` also by CTC, and with a
    `dag_ratio` along a path through a graph.

    Fields have the names of ModelConfig in janus_jax. `janus_jax` holds the whole configuration of the training; no
    code here reads it.

    Raises:
      ValueError: a setting is none of its choices, heads do not divide the width, or ctc_ratio, dag_ratio,
        parallel_adapter_rank, draft_heads or draft_vocab is negative.
    """

    # transformers has another model of the name "janus".
    model_type = "janus_jax"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (Trainer adds a list to it)
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "heads",
        "num_hidden_layers": "decoder_layers",
        "max_position_embeddings": "max_positions",
    }

    def __init__(
        self,
        vocab_size: int = 8000,
        d_model: int = 512,
        ffn_dim: int = 1024,
        heads: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        max_positions: int = 1024,  # rows of each position table, without the two reserved rows
        norm: str = "post",  # layer norm after each half of a layer, or "pre": before it
        activation: str = "relu",  # or "gelu": exact (erf)
        scale_embedding: bool = True,  # multiply token embeddings by sqrt(d_model)
        layernorm_embedding: bool = False,  # layer norm of token + position embeddings, before dropout
        nar_layernorm_embedding: bool = True,  # False: not on non-autoregressive rows
        dropout: float = 0.3,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        ar_stream: str = "query",  # a token is predicted from a row with a mask token, or "content": from the row of the token before
        ar_slot_position: str = "target",  # with ar_start "bos": a row has the position of the token that it predicts, or "input": one less
        ar_start: str = "bos",  # the decoder's first token; "eos": as in BART, bos is the second token
        length_classes: int = 256,
        ctc_ratio: float = 0.0,  # CTC rows of the decoder for each source token; 0: a model without blank and CTC rows
        ctc_input: str = "mask",  # CTC rows read the mask token, or "source": source tokens, copied evenly, or "encoder": the mask token and the states of these tokens
        ctc_positions: str = "shared",  # CTC rows have the position table of the other decoder rows, or "own": a table of their own
        dag_ratio: float = 0.0,  # DAG rows of the decoder for each source token; 0: a model without DAG rows and links
        parallel_adapter_rank: int = 0,  # of the low-rank adapters that all decoder rows but autoregressive ones use; 0: none
        draft_heads: int = 0,  # of `generate_speculative`, each of which guesses one more token; 0: none
        draft_vocab: int = 0,  # tokens at the start of the vocabulary that they choose from; 0: a quarter, but at least 1024
        mask_token_id: int = 4,
        bos_token_id: int = 0,
        pad_token_id: int = 1,
        eos_token_id: int = 2,
        unk_token_id: int = 3,
        decoder_start_token_id: int | None = None,  # by default the token that ar_start names
        trained_modes: list[str] | None = None,  # of ar, nar, ctc, dag; others are an error. None: not known
        janus_jax: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.ffn_dim = ffn_dim
        self.heads = heads
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.max_positions = max_positions
        self.norm = norm
        self.activation = activation
        self.scale_embedding = scale_embedding
        self.layernorm_embedding = layernorm_embedding
        self.nar_layernorm_embedding = nar_layernorm_embedding
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.ar_stream = ar_stream
        self.ar_slot_position = ar_slot_position
        self.ar_start = ar_start
        self.length_classes = length_classes
        self.ctc_ratio = ctc_ratio
        self.ctc_input = ctc_input
        self.ctc_positions = ctc_positions
        self.dag_ratio = dag_ratio
        self.parallel_adapter_rank = parallel_adapter_rank
        self.draft_heads = draft_heads
        self.draft_vocab = draft_vocab
        self.mask_token_id = mask_token_id
        self.unk_token_id = unk_token_id
        self.trained_modes = trained_modes
        self.janus_jax = janus_jax or {}
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
        if d_model % heads:
            raise ValueError(f"heads: {heads} do not divide d_model {d_model}; choose a divisor")
        for name, ratio in (("ctc", ctc_ratio), ("dag", dag_ratio)):
            if ratio < 0:
                raise ValueError(
                    f"{name}_ratio: {ratio} rows a source token; choose 0 (no {name.upper()} rows) or more"
                )
        if parallel_adapter_rank < 0:
            raise ValueError(f"parallel_adapter_rank: {parallel_adapter_rank}; choose 0 (no adapters) or more")
        if draft_heads < 0:
            raise ValueError(f"draft_heads: {draft_heads}; choose 0 (none) or more")
        if draft_vocab < 0:
            raise ValueError(f"draft_vocab: {draft_vocab}; choose 0 (a quarter of the vocabulary) or more")
        if decoder_start_token_id is None:
            decoder_start_token_id = bos_token_id if ar_start == "bos" else eos_token_id
        kwargs.setdefault("is_encoder_decoder", True)
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(
            bos_token_id=bos_token_id,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
            decoder_start_token_id=decoder_start_token_id,
            **kwargs,
        )

    @property
    def start_tokens(self) -> list[int]:
        """The decoder's tokens before the first token that is searched for."""
        return [self.bos_token_id] if self.ar_start == "bos" else [self.eos_token_id, self.bos_token_id]

    @property
    def blank_token_id(self) -> int | None:
        """The id of CTC's blank, which follows the vocabulary; None in a model without CTC rows. No tokenizer contains it."""
        return self.vocab_size if self.ctc_ratio else None

    def ctc_slots(self, source_length: int) -> int:
        """Number of CTC rows of a source of `source_length` tokens, bos and eos included."""
        return _rows_of_source(self.ctc_ratio, source_length)

    def dag_slots(self, source_length: int) -> int:
        """Number of DAG rows of a source of `source_length` tokens, bos and eos included."""
        return _rows_of_source(self.dag_ratio, source_length)


def _rows_of_source(ratio: float, source_length: int) -> int:
    # Rounded first, since 1.1 * 10 is 11.000000000000002 in floating point.
    return math.ceil(round(ratio * source_length, 6))


# Stopping rules: name in janus_jax -> name in transformers.
EARLY_STOPPING = {"best": "never", "current": False, "released": True}


def default_generation_config(
    config: JanusConfig,
    *,
    beam: int = 5,
    lenpen: float = 1.0,
    stop: str = "best",
    max_length_a: float = 1.5,
    max_length_b: int = 20,
    min_length: int = 1,
    no_repeat_ngram: int = 0,
    max_target_length: int | None = None,
) -> GenerationConfig:
    """Settings of `generate` whose outputs equal those of mode "ar" of janus_jax with the settings of these names.

    Args:
      config: the architecture.
      beam, lenpen, stop, min_length, no_repeat_ngram: as in the decoding settings of janus_jax.
      max_length_a, max_length_b: an output has at most a * source tokens + b tokens, then eos. The result keeps these
        names, and `JanusForConditionalGeneration.generate` reads them.
      max_target_length: number of tokens of the longest output, bos and eos included; None: the number of positions.

    Raises:
      ValueError: the stopping rule is unknown.
    """
    if stop not in EARLY_STOPPING:
        raise ValueError(f"stop: {stop!r} is not one of {', '.join(map(repr, EARLY_STOPPING))}")
    longest = min(max_target_length or config.max_positions, config.max_positions)
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        num_beams=beam,
        length_penalty=lenpen,
        early_stopping=EARLY_STOPPING[stop] if beam > 1 else None,
        do_sample=False,
        suppress_tokens=[config.pad_token_id, config.bos_token_id, config.mask_token_id],
        min_new_tokens=max(min_length, 1),
        no_repeat_ngram_size=no_repeat_ngram,
        max_length=len(config.start_tokens) + longest - 1,
        max_length_a=max_length_a,
        max_length_b=max_length_b,
    )
