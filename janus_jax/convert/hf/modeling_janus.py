"""JANUS for transformers: one encoder-decoder that generates a token at a time (`generate`) or many at once (`generate_nar`
and, in models with CTC rows, `generate_ctc`).

Rows of the decoder: content rows stand for tokens and give keys and values; a query row is a mask token at a position,
sees content rows and is seen by none. With `ar_stream` "query" the next token is predicted from a query row, with
"content" from the content row of the token before it. Mask-predict reads content rows that all see each other. So do CTC
rows, of which a sentence has `ctc_ratio` a source token; each emits a token or the blank, whose id is behind the vocabulary.

Legend: B sentences, K length candidates or hypotheses a sentence, N rows of a search, R query rows or CTC rows, S source
length or key rows, T target slots (bos and eos counted), L tokens in the cache or of a hypothesis, D model width, H heads,
V vocabulary, C length classes, k tokens that a CTC row offers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .configuration_janus import JanusConfig, default_generation_config

RESERVED_POSITIONS = 2  # position p is row p + 2 of a table, whose first rows stand for nothing and for padding
SHORTEST = 2  # bos and eos

KeysValues = tuple[Tensor, Tensor]  # [B, H, S, D/H] each


def bias_of(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """To add to attention logits [B, H, R, S]: 0 where `allowed` [B or 1, R or 1, S], very low elsewhere.

    Not -inf: a row that may attend to nothing (padding) gives numbers, not NaN.
    """
    low = torch.finfo(dtype).min / 2
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, low)[:, None]


class JanusAttention(nn.Module):
    """Multi-head attention, whose keys and values may come from elsewhere or from before."""

    def __init__(self, config: JanusConfig):
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def keys_values(self, x: Tensor) -> KeysValues:
        """[B, S, D] -> keys and values."""
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """[B, R, D] -> [B, R, D]; bias [B or 1, 1, R or 1, S] is added to the logits."""
        dropout = self.dropout if self.training else 0.0
        queries = self._split(self.q_proj(x))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class JanusLayer(nn.Module):
    """What layers of both sides have in common: self-attention and feed-forward, with layer norm behind or before each."""

    def __init__(self, config: JanusConfig):
        super().__init__()
        self.config = config
        self.pre = config.norm == "pre"
        self.self_attn = JanusAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def content(self, x: Tensor) -> KeysValues:
        """Self-attention keys and values of the layer input [B, S, D]."""
        return self.self_attn.keys_values(self.self_attn_layer_norm(x) if self.pre else x)

    def attend(
        self, x: Tensor, attention: JanusAttention, norm: nn.LayerNorm, memory: KeysValues, bias: Tensor
    ) -> Tensor:
        """One attention half of the layer, with residual and layer norm."""
        x = x + self.drop(attention(norm(x) if self.pre else x, *memory, bias))
        return x if self.pre else norm(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The other half: W2 act(W1 x), with residual and layer norm."""
        activation = F.relu if self.config.activation == "relu" else F.gelu
        hidden = activation(self.fc1(self.final_layer_norm(x) if self.pre else x))
        hidden = F.dropout(hidden, self.config.activation_dropout, self.training)
        x = x + self.drop(self.fc2(hidden))
        return x if self.pre else self.final_layer_norm(x)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)


class JanusEncoderLayer(JanusLayer):
    """Self-attention and feed-forward."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]; bias [B, 1, 1, S]."""
        x = self.attend(x, self.self_attn, self.self_attn_layer_norm, self.content(x), bias)
        return self.feed_forward(x)


class JanusDecoderLayer(JanusLayer):
    """Self-attention, cross-attention and feed-forward, over keys and values at hand."""

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        self.encoder_attn = JanusAttention(config)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, content: KeysValues, bias: Tensor, source: KeysValues, source_bias: Tensor) -> Tensor:
        """Rows [B, R, D] over content rows and source rows; biases as in `bias_of`."""
        x = self.attend(x, self.self_attn, self.self_attn_layer_norm, content, bias)
        x = self.attend(x, self.encoder_attn, self.encoder_attn_layer_norm, source, source_bias)
        return self.feed_forward(x)


class JanusEmbedder(nn.Module):
    """What encoder and decoder have in common: tables of tokens and of positions, and how a row is made of them."""

    def __init__(self, config: JanusConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_positions + RESERVED_POSITIONS, config.d_model)
        if config.layernorm_embedding:
            self.layernorm_embedding = nn.LayerNorm(config.d_model)
        if config.norm == "pre":
            self.layer_norm = nn.LayerNorm(config.d_model)

    def embed(self, tokens: Tensor, positions: Tensor, normalise: bool = True) -> Tensor:
        """Rows [B, R, D] of tokens [B, R] at 0-based positions [B or 1, R]."""
        c = self.config
        scale = math.sqrt(c.d_model) if c.scale_embedding else 1.0
        x = scale * self.embed_tokens(tokens) + self.embed_positions(positions + RESERVED_POSITIONS)
        if c.layernorm_embedding and normalise:
            x = self.layernorm_embedding(x)
        return F.dropout(x, c.dropout, self.training)

    def finish(self, x: Tensor) -> Tensor:
        """What follows the last layer."""
        return self.layer_norm(x) if self.config.norm == "pre" else x

    def check_length(self, length: int, what: str) -> None:
        """Raises ValueError where there is no position for the last of `length` tokens."""
        if length > self.config.max_positions:
            raise ValueError(
                f"{what}: {length} tokens, but this model has {self.config.max_positions} positions; cut the input"
            )


class JanusEncoder(JanusEmbedder):
    """Source tokens -> states."""

    main_input_name = "input_ids"

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(JanusEncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = True,
    ) -> BaseModelOutput | tuple[Tensor]:
        """States [B, S, D] of source tokens [B, S].

        Args:
          input_ids: bos ... eos, padding on either side: the first real token has position 0.
          attention_mask: [B, S] true at real tokens; None: wherever there is no padding.
          output_attentions, output_hidden_states: not offered; `generate` names them.
          return_dict: False gives a tuple.

        Raises:
          ValueError: what is not offered, or more tokens than positions.
        """
        if output_attentions or output_hidden_states:
            raise ValueError("output_attentions, output_hidden_states: this model gives neither; leave them out")
        real = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        positions = (real.cumsum(1) - 1).clamp(min=0)
        if input_ids.shape[1] > self.config.max_positions:
            self.check_length(int(positions.max()) + 1, "input_ids")
        x = self.embed(input_ids, positions)
        bias = bias_of(real[:, None], x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        output = BaseModelOutput(last_hidden_state=self.finish(x))
        return output if return_dict or return_dict is None else output.to_tuple()


class JanusDecoder(JanusEmbedder):
    """All decoder passes."""

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(JanusDecoderLayer(config) for _ in range(config.decoder_layers))
        self.embed_length = nn.Embedding(config.length_classes, config.d_model)
        self.output_projection = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.ctc_ratio:
            self.embed_blank = nn.Embedding(1, config.d_model)

    def sources(self, states: Tensor | None, cache: EncoderDecoderCache | None = None) -> list[KeysValues]:
        """Each layer's cross-attention keys and values of states [B, S, D], from the cache once they are there."""
        found = []
        for i, layer in enumerate(self.layers):
            if cache is not None and cache.is_updated.get(i):
                held = cache.cross_attention_cache.layers[i]
                found.append((held.keys, held.values))
                continue
            made = layer.encoder_attn.keys_values(states)
            if cache is not None:
                made = cache.cross_attention_cache.update(*made, i)
                cache.is_updated[i] = True
            found.append(made)
        return found

    def ar_rows(
        self,
        tokens: Tensor,
        real: Tensor | None,
        states: Tensor | None,
        source_bias: Tensor,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """Hidden rows [N, R, D] of which row t predicts what follows token t of tokens [N, R], those in the cache before them.

        Args:
          tokens: new input tokens.
          real: [N, L + R] true at tokens that are no padding, those in the cache counted; None: all of them.
          states: [N, S, D] of the encoder; None where the cache holds their projections.
          source_bias: [N, 1, 1, S].
          cache: becomes longer by the content rows.
        """
        c, new = self.config, tokens.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        ahead = int(c.ar_start == "bos" and c.ar_slot_position == "target")
        self.check_length(past + new + ahead, "decoder_input_ids")
        slots = torch.arange(past, past + new, device=tokens.device)[None]
        seen = torch.arange(past + new, device=tokens.device) <= slots[..., None]
        if real is not None:
            slots = (real.cumsum(1)[:, -new:] - 1).clamp(min=0)
            seen = seen & real[:, None]
        x, queries = self.embed(tokens, slots + ahead), 0
        if c.ar_stream == "query":
            masks = torch.full_like(tokens, c.mask_token_id)
            x, queries = torch.cat([self.embed(masks, slots + ahead), x], dim=1), new
            seen = torch.cat([seen, seen], dim=1)
        return self.advance(x, queries, bias_of(seen, x.dtype), self.sources(states, cache), source_bias, cache)

    def nar_rows(self, tokens: Tensor, sources: list[KeysValues], source_bias: Tensor) -> Tensor:
        """Hidden rows [N, T, D] of tokens [N, T], which all see each other; padding is seen by none."""
        self.check_length(tokens.shape[1], "decoder_input_ids")
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.embed(tokens, positions, self.config.nar_layernorm_embedding)
        bias = bias_of((tokens != self.config.pad_token_id)[:, None], x.dtype)
        return self.advance(x, 0, bias, sources, source_bias, None)

    def ctc_rows(self, tokens: Tensor, real: Tensor, sources: list[KeysValues], source_bias: Tensor) -> Tensor:
        """Hidden rows [B, R, D] of what CTC rows read [B, R]; all see those that are `real` [B, R]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.embed(tokens, positions)
        return self.advance(x, 0, bias_of(real[:, None], x.dtype), sources, source_bias, None)

    def ctc_logits(self, rows: Tensor) -> Tensor:
        """Logits [..., V + 1] of vocabulary and blank, which comes last, of CTC rows [..., D]."""
        return torch.cat([self.output_projection(rows), rows @ self.embed_blank.weight.T], dim=-1)

    def advance(
        self,
        x: Tensor,
        queries: int,
        bias: Tensor,
        sources: list[KeysValues],
        source_bias: Tensor,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """Rows [N, R, D], `queries` query rows and then content rows, through all layers: the rows that predict."""
        for i, layer in enumerate(self.layers):
            content = layer.content(x[:, queries:])
            if cache is not None:
                content = cache.self_attention_cache.update(*content, i)
            if queries and i == len(self.layers) - 1:
                # Content rows are done: only their keys and values were needed.
                x, bias = x[:, :queries], bias[:, :, :queries]
            x = layer(x, content, bias, sources[i], source_bias)
        return self.finish(x)


class EndInTime(LogitsProcessor):
    """Forces eos as the last token that there is room for, at its own score.

    transformers' ForcedEOSTokenLogitsProcessor gives the forced eos a log-probability of 0, and beam search would prefer
    what was cut off.
    """

    def __init__(self, limits: Tensor, eos_token_id: int):
        """Args:
        limits: [B] or [1], the most tokens of a row, what the search began with counted.
        eos_token_id: of the tokenizer.
        """
        self.limits, self.eos = limits, eos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        limits = self.limits.to(scores.device).repeat_interleave(scores.shape[0] // len(self.limits))
        last = input_ids.shape[1] + 1 >= limits
        own = scores[:, self.eos]
        only = torch.full_like(scores, -math.inf)
        only[:, self.eos] = torch.where(own == -math.inf, 0.0, own)
        return torch.where(last[:, None], only, scores)


class JanusForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Encoder, decoder and length head; parameter names are those of the released fairseq checkpoints.

    Example:
      model = AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True)
      tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
      batch = tokenizer(["ein Satz"], return_tensors="pt")
      model.generate(**batch, num_beams=5)
      model.generate_nar(**batch, passes=4)
      model.generate_ctc(**batch, num_beams=4)  # of a model with ctc_ratio above 0
    """

    config_class = JanusConfig
    main_input_name = "input_ids"
    _tied_weights_keys = {  # noqa: RUF012
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "decoder.output_projection.weight": "encoder.embed_tokens.weight",
    }
    _no_split_modules = ("JanusEncoderLayer", "JanusDecoderLayer")
    _supports_sdpa = True

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        self.encoder = JanusEncoder(config)
        self.decoder = JanusDecoder(config)
        self.generation_config = default_generation_config(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value
        self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder.output_projection

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.decoder.output_projection = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple:
        """Autoregressive logits: those at t predict what follows token t of decoder_input_ids.

        Args:
          input_ids: [B, S] source, bos ... eos, padding on either side.
          attention_mask: [B, S] true at real source tokens; None: wherever input_ids hold no padding.
          decoder_input_ids: [B, R] new tokens behind those in the cache. The first of all is bos; with ar_start "eos",
            eos and then bos.
          decoder_attention_mask: [B, L + R] true at real decoder tokens; needed only for padding on the left.
          encoder_outputs: of `encoder`, instead of input_ids; give attention_mask with it.
          past_key_values: what earlier calls returned. It holds content rows and projected source rows only.
          labels: [B, T] tokens to predict, -100 or padding where none is; the loss is their mean cross-entropy. Without
            decoder_input_ids they are the whole target, bos ... eos, and the decoder reads what stands before each.
          use_cache: return the keys and values; by default where none are trained.
          return_dict: False gives a tuple.

        Raises:
          ValueError: no source, nothing to decode, or more tokens than positions.
        """
        c = self.config
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids: nothing to decode; give them, or labels, or call generate")
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        if past_key_values is None and (use_cache if use_cache is not None else not self.training):
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        rows = self.decoder.ar_rows(
            decoder_input_ids,
            None if decoder_attention_mask is None else decoder_attention_mask.bool(),
            states,
            bias_of(real[:, None], states.dtype),
            past_key_values,
        )
        logits = self.decoder.output_projection(rows)
        loss = None
        if labels is not None:
            wanted = labels[:, labels.shape[1] - logits.shape[1] :]  # without a bos that nothing predicts
            wanted = wanted.masked_fill(wanted == c.pad_token_id, -100)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
        output = Seq2SeqLMOutput(
            loss=loss, logits=logits, past_key_values=past_key_values, encoder_last_hidden_state=states
        )
        return output if return_dict or return_dict is None else output.to_tuple()

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """What the decoder reads to predict labels [B, T]: the first token, then the labels but the last.

        With ar_start "bos", labels that begin with bos have it already: [B, T - 1] then.
        """
        c = self.config
        labels = labels.masked_fill(labels == -100, c.pad_token_id)
        if c.ar_start == "bos" and bool((labels[:, 0] == c.bos_token_id).all()):
            return labels[:, :-1]
        return torch.cat([torch.full_like(labels[:, :1], c.decoder_start_token_id), labels[:, :-1]], dim=1)

    def length_logits(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """[B, C] logits of the target's length, bos and eos counted; arguments as in `forward`."""
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        return self._length_logits(states, real)

    def nar_forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of targets with masks, all of whose tokens see each other: at a mask, of the token it hides.

        Args:
          input_ids, attention_mask, encoder_outputs: as in `forward`.
          decoder_input_ids: [B, T] bos ... eos with masks, padded.

        Raises:
          ValueError: no source, nothing to decode, or more tokens than positions.
        """
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids: nothing to decode; give targets with masks, or call generate_nar")
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        sources, bias = self.decoder.sources(states), bias_of(real[:, None], states.dtype)
        return self.decoder.output_projection(self.decoder.nar_rows(decoder_input_ids, sources, bias))

    def ctc_forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, R, V + 1] of the CTC rows, the last column the blank's, and how many rows [B] each sentence has.

        With `F.ctc_loss` they train: `logits.log_softmax(-1).transpose(0, 1)` are its log-probabilities,
        `config.blank_token_id` its blank, and its targets are without bos and eos.

        Args:
          input_ids, attention_mask, encoder_outputs: as in `forward`; with ctc_input "source" input_ids are needed.

        Raises:
          ValueError: a model without CTC rows, no source, or more rows than positions.
        """
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        rows, of_sentence = self._ctc_rows(input_ids, states, real)
        return self.decoder.ctc_logits(rows), of_sentence.sum(1)

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """transformers' `generate`, a token at a time: greedy search, beam search, sampling.

        Three things are added. A missing attention_mask is taken from the padding. With ar_start "eos" the decoder begins
        with eos and bos, so that bos is neither searched for nor scored. The last token that there is room for is eos, with
        its own probability (`EndInTime`): at max_length, and with max_length_a and max_length_b in the generation
        config at a * source tokens + b more tokens.

        With the settings of `default_generation_config` (those of the model unless its directory says otherwise) the
        tokens and scores are those of janus_jax's mode "ar": num_beams is `beam` (1: greedy), length_penalty is `lenpen`
        (both divide by the tokens with eos, without bos), early_stopping "never", False and True are `stop` "best",
        "current" and "released" (True: the best hypothesis; the others may differ), min_new_tokens is `min_length`,
        no_repeat_ngram_size is `no_repeat_ngram` (from 2 on), suppress_tokens are pad, bos and mask. Do not set
        forced_eos_token_id or forced_bos_token_id: they score the forced token 0.

        Args:
          inputs: [B, S] source tokens, or as input_ids.
          generation_config, **kwargs: as in transformers.

        Returns:
          Token ids [B, T] with the decoder's first tokens (bos; eos and bos), ending in eos, padded.
        """
        c = self.config
        source = inputs if inputs is not None else kwargs.get("input_ids")
        if source is not None and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = (source != c.pad_token_id).long()
        if c.ar_start == "eos" and kwargs.get("decoder_input_ids") is None:
            like = source if source is not None else kwargs["encoder_outputs"][0]
            start = torch.tensor([c.start_tokens], device=like.device)
            kwargs["decoder_input_ids"] = start.repeat(like.shape[0], 1)
        return super().generate(inputs, generation_config, **kwargs)

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        super().adjust_generation_fn(*args, **kwargs)
        if getattr(self.generation_config, "_from_model_config", False):  # no generation_config.json
            self.generation_config = default_generation_config(self.config)

    def _get_logits_processor(self, generation_config: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        eos = generation_config.eos_token_id
        if eos is None or generation_config.max_length is None:
            return processors
        mask = (kwargs.get("model_kwargs") or {}).get("attention_mask")
        frame = len(self.config.start_tokens)
        given = kwargs.get("input_ids_seq_length", frame) - frame
        a, b = (getattr(generation_config, name, None) for name in ("max_length_a", "max_length_b"))
        limits = torch.tensor([generation_config.max_length])
        if mask is not None and a is not None and b is not None:
            inner = (mask.sum(1) - 2).clamp(min=0)
            allowed = ((a * inner.double() + b).long() + 1).clamp(min=given + 1)
            allowed = torch.where(inner > 0, allowed, 1)  # nothing to translate: nothing comes of it
            limits = (frame + allowed).clamp(max=generation_config.max_length)
        processors.append(EndInTime(limits, eos if isinstance(eos, int) else eos[0]))
        return processors

    @torch.no_grad()
    def generate_nar(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        passes: int = 10,
        length_beam: int = 3,
        lengths: str = "top",
        mask_schedule: str = "linear",
        early_stop: bool = False,
        merge_repeats: bool = False,
        max_length: int | None = None,
        return_scores: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mask-predict (Ghazvininejad et al. 2019), by the rules of janus_jax's mode "nar": its tokens exactly.

        For each of some lengths all tokens are masked, and a pass fills the masks with the likeliest tokens; then the least
        sure are masked again, fewer after each pass. Of the candidates that one wins whose mean log-probability, that of
        its length included, is the highest. pad, bos and mask are never emitted, an eos ends the output, and a candidate
        without tokens loses to any other.

        Args:
          input_ids, attention_mask: as in `forward`.
          passes: how often the decoder runs.
          length_beam: how many lengths are tried.
          lengths: "top": the most probable ones, or "contiguous": those around the most probable.
          mask_schedule: of n tokens, "linear" masks n (P - s) / P again after pass s of P, "cosine" n cos(pi s / 2P).
          early_stop: end when a pass changes nothing.
          merge_repeats: drop a token right after itself.
          max_length: most tokens, bos and eos counted; None: as many as `generate` gives.
          return_scores: also return the scores [B].

        Returns:
          Token ids [B, T], bos ... eos, padded.

        Raises:
          ValueError: an impossible setting.
        """
        c = self.config
        if lengths not in ("top", "contiguous") or mask_schedule not in ("linear", "cosine"):
            raise ValueError(
                f"lengths {lengths!r} must be 'top' or 'contiguous', mask_schedule {mask_schedule!r} 'linear' or 'cosine'"
            )
        if passes < 1 or length_beam < 1:
            raise ValueError(f"passes {passes} and length_beam {length_beam} must be at least 1")
        states, real = self._encoded(input_ids, attention_mask, None)
        length_logits = self._length_logits(states, real)
        tried = candidate_lengths(length_logits, length_beam, self._longest(max_length), lengths)
        is_frame = (input_ids == c.bos_token_id) | (input_ids == c.eos_token_id)
        tried = torch.where((real & ~is_frame).any(1, keepdim=True), tried, SHORTEST)  # empty source: bos, eos
        sources = [tuple(x.repeat_interleave(length_beam, 0) for x in pair) for pair in self.decoder.sources(states)]
        bias = bias_of(real[:, None], states.dtype).repeat_interleave(length_beam, 0)
        search = _MaskPredict(self, sources, bias, passes, mask_schedule, early_stop)
        tokens, scores = search.run(tried.flatten())
        tokens, scores = best_candidates(tokens, scores, tried, length_logits, c)
        if merge_repeats:
            tokens = without_repeats(tokens, c.pad_token_id)
        tokens = tokens[:, : int((tokens != c.pad_token_id).sum(1).max())]
        return (tokens, scores) if return_scores else tokens

    @torch.no_grad()
    def generate_ctc(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_beams: int = 1,
        ctc_tokens: int = 16,
        num_return_sequences: int = 1,
        max_length: int | None = None,
        return_scores: bool = False,
        blank_penalty: float = 0.0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One pass of CTC rows (Graves et al. 2006), by the rules of janus_jax's mode "ctc": its tokens exactly.

        Each row emits a token or the blank. What remains when repeats are merged and blanks dropped is the output. bos,
        pad, eos and mask are never emitted.

        Args:
          input_ids, attention_mask: as in `forward`.
          num_beams: 1: the likeliest token of each row. More: a prefix beam search, which adds up the probability of all
            ways to emit an output.
          ctc_tokens: so many of a row's likeliest tokens enter the beam search.
          num_return_sequences: outputs a sentence, best first.
          max_length: most tokens, bos and eos counted; None: as many as `generate` gives.
          return_scores: also return the log-probabilities [B * num_return_sequences]; with one beam that of the rows' choices.
          blank_penalty: taken from the blank's log-probability in every row, against outputs that are too short; scores hold it.

        Returns:
          Token ids [B * num_return_sequences, T], bos ... eos, padded. Where a sentence has fewer outputs, the others are
          empty and score -inf.

        Raises:
          ValueError: a model without CTC rows, an impossible setting, or more rows than positions.
        """
        c = self.config
        if min(num_beams, ctc_tokens, num_return_sequences) < 1:
            raise ValueError(
                f"num_beams {num_beams}, ctc_tokens {ctc_tokens} and num_return_sequences {num_return_sequences} must be at least 1"
            )
        if num_return_sequences > num_beams:
            raise ValueError(
                f"num_return_sequences: {num_return_sequences} of {num_beams} beams; raise num_beams or lower it"
            )
        longest = self._most(max_length)
        if longest < SHORTEST:
            raise ValueError(f"max_length: {longest} tokens do not hold bos and eos; raise it")
        states, real = self._encoded(input_ids, attention_mask, None)
        rows, of_sentence = self._ctc_rows(input_ids, states, real)
        is_frame = (input_ids == c.bos_token_id) | (input_ids == c.eos_token_id)
        of_sentence = of_sentence & (real & ~is_frame).any(1, keepdim=True)  # empty source: no rows, no tokens
        emitted = self._ctc_emissions(rows, of_sentence, 1 if num_beams == 1 else ctc_tokens)
        emitted.blank.sub_(blank_penalty)
        if num_beams == 1:
            tokens, lengths, scores = best_path(emitted, longest - SHORTEST)
        else:
            tokens, lengths, scores = prefix_beam_search(emitted, num_beams, longest - SHORTEST)
        n = num_return_sequences
        tokens = framed(tokens[:, :n].flatten(0, 1), lengths[:, :n].flatten(), c)
        return (tokens, scores[:, :n].flatten()) if return_scores else tokens

    def _ctc_rows(self, input_ids: Tensor | None, states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """CTC rows [B, R, D] of encoded sources [B, S], and which of them [B, R] are the sentence's own."""
        c = self.config
        if not c.ctc_ratio:
            raise ValueError(
                "this model has no CTC rows (ctc_ratio 0); call generate or generate_nar, or train one with objective "
                "janus_ctc or ctc"
            )
        lengths = real.sum(1, keepdim=True)
        counts = torch.tensor([[c.ctc_slots(length)] for length in lengths[:, 0].tolist()], device=real.device)
        row = torch.arange(max(int(counts.max()), 1), device=real.device)
        if len(row) > c.max_positions:
            raise ValueError(
                f"input_ids: {len(row)} CTC rows, but this model has {c.max_positions} positions; cut the input"
            )
        if c.ctc_input == "source":
            if input_ids is None:
                raise ValueError("input_ids: CTC rows of this model read the source tokens; give them")
            nth = torch.minimum(row * lengths // counts.clamp(min=1), (lengths - 1).clamp(min=0))
            first_to_last = (~real).byte().argsort(dim=1, stable=True)  # padding may stand on the left
            read = input_ids.gather(1, first_to_last.gather(1, nth))
        else:
            read = torch.full((len(real), len(row)), c.mask_token_id, device=real.device)
        bias = bias_of(real[:, None], states.dtype)
        return self.decoder.ctc_rows(read, row < counts, self.decoder.sources(states), bias), row < counts

    def _ctc_emissions(self, rows: Tensor, real: Tensor, offered: int) -> "Emissions":
        """What the `real` [B, R] ones of CTC rows [B, R, D] may emit, of their tokens the likeliest `offered`."""
        c = self.config
        logits = self.decoder.ctc_logits(rows[real]).float()
        total = logits.logsumexp(-1)
        banned = [c.bos_token_id, c.pad_token_id, c.eos_token_id, c.blank_token_id]
        banned += [c.mask_token_id] if c.mask_token_id != c.unk_token_id else []
        allowed = logits.clone()
        allowed[:, banned] = -math.inf
        best = allowed.topk(min(offered, logits.shape[-1] - len(banned)), dim=-1)

        def placed(values: Tensor) -> Tensor:
            whole = values.new_zeros((*real.shape, *values.shape[1:]))
            whole[real] = values
            return whole

        return Emissions(
            placed(best.indices),
            placed(best.values - total[:, None]),
            placed(logits[:, c.blank_token_id] - total),
            real,
        )

    def _most(self, max_length: int | None) -> int:
        """Most tokens of an output, bos and eos counted."""
        c = self.config
        if max_length is None:
            most = self.generation_config.max_length
            max_length = c.max_positions if most is None else most - len(c.start_tokens) + 1
        return min(max_length, c.max_positions)

    def _longest(self, max_length: int | None) -> int:
        """Most tokens of an output that the length head chooses the length of."""
        return min(self._most(max_length), self.config.length_classes - 1)

    def _length_logits(self, states: Tensor, real: Tensor) -> Tensor:
        weights = real[:, :, None].float()
        mean = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return mean @ self.decoder.embed_length.weight.float().T

    def _encoded(self, input_ids: Tensor | None, attention_mask: Tensor | None, outputs: Any) -> tuple[Tensor, Tensor]:
        """Encoder states [B, S, D], computed where they are not at hand, and which of them are of real tokens [B, S]."""
        if outputs is None:
            if input_ids is None:
                raise ValueError("input_ids: there is no source; give them, or encoder_outputs")
            outputs = self.encoder(input_ids, attention_mask)
        states = outputs[0]
        if attention_mask is not None:
            return states, attention_mask.bool()
        if input_ids is not None:
            return states, input_ids != self.config.pad_token_id
        return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)


class _MaskPredict:
    """Fills targets of given lengths in several passes; one use."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        sources: list[KeysValues],
        source_bias: Tensor,
        passes: int,
        schedule: str,
        early_stop: bool,
    ):
        self.model, self.config = model, model.config
        self.sources, self.source_bias = sources, source_bias
        self.passes, self.schedule, self.early_stop = passes, schedule, early_stop

    def run(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, T] of targets of these lengths [N] and the log-probability of each, 0 at bos, eos and padding."""
        c = self.config
        lengths = lengths[:, None]
        slot = torch.arange(int(lengths.max()), device=lengths.device)
        free = (slot > 0) & (slot < lengths - 1)
        tokens = torch.where(free, c.mask_token_id, torch.where(slot < lengths, c.eos_token_id, c.pad_token_id))
        tokens[:, 0] = c.bos_token_id
        scores = torch.zeros(tokens.shape, device=tokens.device)
        done = torch.zeros_like(lengths, dtype=torch.bool)
        filled, filled_scores = torch.full_like(tokens, -1), scores
        for number in range(1, self.passes + 1):
            new, new_scores = self.fill(tokens, scores, free & (tokens == c.mask_token_id))
            if self.early_stop:
                new = torch.where(done, filled, new)
                new_scores = torch.where(done, filled_scores, new_scores)
                done = done | (new == filled).all(1, keepdim=True)
            filled, filled_scores = new, new_scores
            again = free & self.least_sure(filled_scores, free, number) & ~done
            tokens = torch.where(again, c.mask_token_id, filled)
            scores = torch.where(again, 0.0, filled_scores)
            if bool(done.all()):
                break
        return filled, filled_scores

    def fill(self, tokens: Tensor, scores: Tensor, is_open: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest allowed tokens in open slots, with their log-probabilities; the other slots as they were."""
        c, decoder = self.config, self.model.decoder
        rows = decoder.nar_rows(tokens, self.sources, self.source_bias)[is_open]
        logits = decoder.output_projection(rows).float()
        allowed = logits.clone()
        allowed[:, [c.pad_token_id, c.bos_token_id, c.mask_token_id]] = -math.inf
        best = allowed.argmax(-1)
        best_scores = logits.gather(1, best[:, None])[:, 0] - logits.logsumexp(-1)
        tokens, scores = tokens.clone(), scores.clone()
        tokens[is_open], scores[is_open] = best, best_scores
        return tokens, scores

    def least_sure(self, scores: Tensor, free: Tensor, number: int) -> Tensor:
        """[N, T] true at the slots to mask again after pass `number`; of equals the lower positions."""
        counts = remask_counts(free.shape[1], self.passes, number, self.schedule)
        count = torch.tensor(counts, device=scores.device)[free.sum(1, keepdim=True)]
        order = scores.masked_fill(~free, math.inf).argsort(dim=1, stable=True)
        return order.argsort(dim=1) < count


def remask_counts(most: int, passes: int, number: int, schedule: str) -> list[int]:
    """How many of n = 0 ... most tokens are masked again after pass `number` of `passes`."""
    if schedule == "linear":
        return [n * (passes - number) // passes for n in range(most + 1)]
    share = math.cos(0.5 * math.pi * number / passes) if number < passes else 0.0
    return [int(n * share) for n in range(most + 1)]


def candidate_lengths(length_logits: Tensor, count: int, longest: int, choice: str) -> Tensor:
    """Lengths to try [B, count], bos and eos counted, from length logits [B, C]; see `generate_nar`.

    Raises:
      ValueError: fewer than `count` lengths to choose from.
    """
    if choice == "contiguous":
        best = first_of_best(length_logits)[:, None].clamp(min=SHORTEST)
        around = best - count // 2 + torch.arange(count, device=best.device)
        return around.clamp(SHORTEST, longest)
    choices = longest + 1 - SHORTEST
    if count > choices:
        raise ValueError(
            f"length_beam: {count} lengths wanted, but only {choices} lie between {SHORTEST} and {longest}; lower it"
        )
    allowed = length_logits[:, SHORTEST : longest + 1]
    return allowed.sort(dim=1, descending=True, stable=True).indices[:, :count] + SHORTEST


def first_of_best(values: Tensor) -> Tensor:
    """The index [B] of the largest of values [B, X]; of equals the first."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, 0]


def end_at_eos(tokens: Tensor, scores: Tensor, config: JanusConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts filled targets [N, T] behind their first eos.

    Returns:
      The tokens, the mean log-probability [N] of what was filled and is left (an eos that was filled counts), and which
      targets [N] have no token left.
    """
    slot = torch.arange(tokens.shape[1], device=tokens.device)
    length = (tokens != config.pad_token_id).sum(1, keepdim=True)
    first = torch.where(tokens == config.eos_token_id, slot, tokens.shape[1]).amin(1, keepdim=True)
    counted = (slot > 0) & torch.where(first < length - 1, slot <= first, slot < first)
    mean = scores.masked_fill(~counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)
    return tokens.masked_fill(slot > first, config.pad_token_id), mean, first[:, 0] + 1 <= SHORTEST


def best_candidates(
    tokens: Tensor, scores: Tensor, tried: Tensor, length_logits: Tensor, config: JanusConfig
) -> tuple[Tensor, Tensor]:
    """Of filled targets [B * K, T] of the lengths tried [B, K] each sentence's best [B, T], and its score [B].

    A score is the mean log-probability of what was filled and is left, that of the length included, a token's worth each.
    """
    tokens, scores, empty = end_at_eos(tokens, scores, config)
    logp = F.log_softmax(length_logits, dim=-1).gather(1, tried)
    scores = scores.view(tried.shape) + logp / (tried - 2).clamp(min=1)
    best = first_of_best(scores.masked_fill(empty.view(tried.shape), -math.inf))
    row = torch.arange(len(best), device=best.device)
    return tokens.view(*tried.shape, -1)[row, best], scores[row, best]


def without_repeats(tokens: Tensor, pad: int) -> Tensor:
    """Targets [B, T] without the tokens that stand right after themselves, padded."""
    kept = [[t for i, t in enumerate(row) if t != pad and (not i or t != row[i - 1])] for row in tokens.tolist()]
    longest = max(map(len, kept))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in kept], device=tokens.device)


@dataclass(frozen=True)
class Emissions:
    """What CTC rows may emit, with log-probabilities over vocabulary and blank together."""

    tokens: Tensor  # [B, R, k], the likeliest tokens of each row, all different
    log_probs: Tensor  # [B, R, k]
    blank: Tensor  # [B, R]
    real: Tensor  # [B, R], rows that belong to the sentence: the first so many


def best_path(emitted: Emissions, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output of the likeliest choices of all rows: a a - a b reads a a b. Of a token and a blank that tie, the blank counts.

    Args:
      emitted: of B sentences, tokens best first.
      longest: L, most tokens of an output; what is longer is cut.

    Returns:
      Tokens [B, 1, L], how many of them count [B, 1], and the log-probability [B, 1] of the choices.
    """
    log_probs = emitted.log_probs[..., 0]
    is_label = emitted.real & (log_probs > emitted.blank)
    labels = emitted.tokens[..., 0].masked_fill(~is_label, -1)
    is_new = is_label & (labels != F.pad(labels, (1, 0), value=-1)[:, :-1])
    tokens = labels.gather(1, (~is_new).byte().argsort(dim=1, stable=True))[:, :longest]
    chosen = torch.maximum(log_probs, emitted.blank).masked_fill(~emitted.real, 0.0)
    return tokens[:, None], is_new.sum(1, keepdim=True).clamp(max=longest), chosen.sum(1, keepdim=True)


def prefix_beam_search(emitted: Emissions, beam: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest outputs, each with the probability of all its alignments (Graves 2006; Hannun et al. 2014).

    A prefix is the output of the rows so far. After each row the K likeliest stay.

    Args:
      emitted: of B sentences. One without real rows has the empty output only, of probability 1.
      beam: K.
      longest: L, most tokens of an output.

    Returns:
      Tokens [B, K, L], how many of them count [B, K], log-probabilities [B, K]; best first. Where there are fewer outputs
      than K, the others have no token and -inf.
    """
    of, none = emitted.tokens, -math.inf
    sentences, rows, offered = of.shape
    tokens = of.new_full((sentences, beam, max(longest, 1)), -1)
    lengths, last = of.new_zeros(sentences, beam), of.new_full((sentences, beam), -1)
    # Of each prefix the probability of the alignments that end in a blank, and of those that end in its last token. Before
    # the first row there is the empty prefix only, which any token may follow, as after a blank.
    blank = emitted.log_probs.new_full((sentences, beam), none)
    label = blank.clone()
    blank[:, 0] = 0.0
    # [B, K, K]: prefix i is the beginning of prefix j, or is j.
    begins = torch.zeros(sentences, beam, beam, dtype=torch.bool, device=of.device)
    begins[:, 0, 0] = True
    for row in range(rows):
        # Past the end, a blank that is certain moves nothing.
        real, offers = emitted.real[:, row], of[:, row]
        log_probs = emitted.log_probs[:, row].masked_fill(~real[:, None], none)
        log_blank = emitted.blank[:, row].masked_fill(~real, 0.0)
        total = torch.logaddexp(blank, label)
        is_last = offers[:, None] == last[:, :, None]  # [B, K, k]

        # A prefix grows by a token: by its last one again only after a blank, else the two would be merged.
        grown = torch.where(is_last, blank[:, :, None], total[:, :, None]) + log_probs[:, None]
        grown = grown.masked_fill((lengths >= longest)[:, :, None], none)
        # What grows into another prefix of the beam counts there.
        is_parent = begins & (lengths[:, :, None] + 1 == lengths[:, None])  # prefix i is j without its last token
        is_twin = is_parent[..., None] & is_last[:, None]  # [B, K, K, k]: prefix i and token c are prefix j
        joining = torch.where(is_twin, grown[:, :, None], none).amax(dim=(1, 3))
        grown = grown.masked_fill(is_twin.any(2), none)

        # A prefix stays as it is, by a blank or by its last token once more.
        again = torch.where(is_last, log_probs[:, None], none).amax(2)
        blank, label = total + log_blank[:, None], torch.logaddexp(label + again, joining)

        every = torch.cat([torch.logaddexp(blank, label), grown.flatten(1)], dim=1)
        scores, chosen = (x[:, :beam] for x in every.sort(dim=1, descending=True, stable=True))
        grows = chosen >= beam
        origin = torch.where(grows, (chosen - beam) // offered, chosen)
        last = torch.where(grows, offers.gather(1, (chosen - beam) % offered), last.gather(1, origin))
        lengths = lengths.gather(1, origin) + grows
        tokens = tokens.gather(1, origin[..., None].expand_as(tokens))
        at_end = torch.arange(tokens.shape[2], device=of.device) == lengths[..., None] - 1
        tokens = torch.where(at_end, last[..., None], tokens)
        blank = blank.gather(1, origin).masked_fill(grows, none)
        label = torch.where(grows, scores, label.gather(1, origin))

        begins = _begins(begins, origin, tokens, lengths, last, scores > none)
    scores = torch.logaddexp(blank, label)
    return tokens, lengths.masked_fill(scores == none, 0), scores


def _begins(before: Tensor, origin: Tensor, tokens: Tensor, lengths: Tensor, last: Tensor, exists: Tensor) -> Tensor:
    """Which prefixes begin which [B, K, K], from the same of their origins [B, K] a row ago.

    Prefix i can begin j only if i's origin began j's: else i would be j grown anew, and such growth is merged.
    """
    began = before.gather(1, origin[:, :, None].expand_as(before)).gather(2, origin[:, None].expand_as(before))
    place = (lengths - 1).clamp(min=0)[:, None].expand_as(before)
    agrees = (lengths == 0)[:, :, None] | (tokens.gather(2, place).transpose(1, 2) == last[:, :, None])
    shorter = lengths[:, :, None] <= lengths[:, None]
    return began & agrees & shorter & exists[:, :, None] & exists[:, None]


def framed(tokens: Tensor, lengths: Tensor, config: JanusConfig) -> Tensor:
    """Token ids [N, T], bos ... eos, padded, of the first lengths [N] of tokens [N, L]."""
    slot = torch.arange(int(lengths.max()), device=tokens.device)
    inner = torch.where(slot < lengths[:, None], tokens[:, : len(slot)], config.pad_token_id)
    whole = F.pad(F.pad(inner, (1, 0), value=config.bos_token_id), (0, 1), value=config.pad_token_id)
    return whole.scatter(1, lengths[:, None] + 1, config.eos_token_id)
