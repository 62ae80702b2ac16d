"""JANUS for transformers: one encoder-decoder that generates one token at a time (`generate`) or many tokens at once
(`generate_nar`; `generate_ctc` in models with CTC rows, `generate_dag` in models with DAG rows). In models with draft heads,
`generate_speculative` gives the tokens of greedy `generate` in fewer passes.

Rows of the decoder: a content row holds a token and gives keys and values. A query row holds a mask token at a
position; it attends to content rows, and no row attends to it. With `ar_stream` "query" the next token is predicted
from a query row, with "content" from the content row of the previous token. In mask-predict, all content rows attend to
each other. So do CTC rows: a sentence has `ctc_ratio` CTC rows for each source token, and each of them emits a token or
the blank, whose id follows the vocabulary. And so do DAG rows, of which a sentence has `dag_ratio` for each source
token: they are the vertices of a graph, each emits a token, and links lead from each to the vertices behind it. Rows of
mask-predict, CTC rows and DAG rows are parallel rows: with a `parallel_adapter_rank`, they use adapters, and the rows of
`generate` do not.

Legend: B sentences, K lengths or hypotheses of a sentence, N hypotheses of all sentences, R query rows, CTC rows or DAG
rows, S source length or key rows, T target slots (bos and eos counted), L tokens in the cache or of a hypothesis, D
model width, H heads, V vocabulary, C length classes or different tokens of a graph, k candidate tokens of a row.
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

RESERVED_POSITIONS = 2  # position p is row p + 2 of a table; the first row is unused, the second one is for padding
SHORTEST = 2  # bos and eos
DAG_SEARCHES = ("greedy", "lookahead", "viterbi", "beam")

KeysValues = tuple[Tensor, Tensor]  # [B, H, S, D/H] each
# Of a search of one pass: tokens [B, K, L] without bos and eos, lengths [B, K] and scores [B, K], best first.
Outputs = tuple[Tensor, Tensor, Tensor]


def bias_of(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias to add to attention logits [B, H, R, S]: 0 where `allowed` [B or 1, R or 1, S], a very low number
    elsewhere.

    A low number and not -inf, so that a row that may attend to nothing (padding) does not become NaN.
    """
    low = torch.finfo(dtype).min / 2
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, low)[:, None]


class JanusAdapter(nn.Module):
    """A low-rank addition to a linear layer, for parallel rows: W_up W_down x."""

    def __init__(self, inputs: int, rank: int, outputs: int):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.up(self.down(x))


def adapted(y: Tensor, x: Tensor, adapter: JanusAdapter | None, parallel: bool) -> Tensor:
    """The output y [B, R, outputs] of a linear layer for x [B, R, inputs]; if the rows are parallel, the adapter's is added."""
    return y + adapter(x) if parallel and adapter is not None else y


class JanusAttention(nn.Module):
    """Multi-head attention over keys and values that may come from other rows or from a cache."""

    def __init__(self, config: JanusConfig, rank: int = 0, adapters: tuple[str, ...] = ("q", "k", "v", "out")):
        """Args:
        config: the architecture.
        rank: of the adapters; 0: none.
        adapters: the projections that have adapters.
        """
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        for name in ("q", "k", "v", "out"):
            adapter = JanusAdapter(config.d_model, rank, config.d_model) if rank and name in adapters else None
            setattr(self, f"{name}_adapter", adapter)

    def keys_values(self, x: Tensor, parallel: bool = False) -> KeysValues:
        """Keys and values of rows [B, S, D]."""
        k = adapted(self.k_proj(x), x, self.k_adapter, parallel)
        v = adapted(self.v_proj(x), x, self.v_adapter, parallel)
        return self._split(k), self._split(v)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, parallel: bool = False) -> Tensor:
        """[B, R, D] -> [B, R, D]; bias [B or 1, 1, R or 1, S] is added to the logits."""
        dropout = self.dropout if self.training else 0.0
        queries = self._split(adapted(self.q_proj(x), x, self.q_adapter, parallel))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
        attended = attended.transpose(1, 2).flatten(2)
        return adapted(self.out_proj(attended), attended, self.out_adapter, parallel)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class JanusLayer(nn.Module):
    """Common part of encoder and decoder layers: self-attention and feed-forward, with layer norm after or before each.

    `parallel` says whether rows are parallel rows, which use the adapters.
    """

    def __init__(self, config: JanusConfig, rank: int = 0):
        super().__init__()
        self.config = config
        self.pre = config.norm == "pre"
        self.self_attn = JanusAttention(config, rank)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model)
        self.fc1_adapter = JanusAdapter(config.d_model, rank, config.ffn_dim) if rank else None
        self.fc2_adapter = JanusAdapter(config.ffn_dim, rank, config.d_model) if rank else None
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def content(self, x: Tensor, parallel: bool = False) -> KeysValues:
        """Keys and values for self-attention, of the layer input [B, S, D]."""
        return self.self_attn.keys_values(self.self_attn_layer_norm(x) if self.pre else x, parallel)

    def attend(
        self,
        x: Tensor,
        attention: JanusAttention,
        norm: nn.LayerNorm,
        memory: KeysValues,
        bias: Tensor,
        parallel: bool = False,
    ) -> Tensor:
        """Attention with residual and layer norm."""
        x = x + self.drop(attention(norm(x) if self.pre else x, *memory, bias, parallel))
        return x if self.pre else norm(x)

    def feed_forward(self, x: Tensor, parallel: bool = False) -> Tensor:
        """Feed-forward W2 act(W1 x), with residual and layer norm."""
        activation = F.relu if self.config.activation == "relu" else F.gelu
        inputs = self.final_layer_norm(x) if self.pre else x
        hidden = activation(adapted(self.fc1(inputs), inputs, self.fc1_adapter, parallel))
        hidden = F.dropout(hidden, self.config.activation_dropout, self.training)
        x = x + self.drop(adapted(self.fc2(hidden), hidden, self.fc2_adapter, parallel))
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
    """Self-attention, cross-attention and feed-forward, over keys and values that are computed before."""

    def __init__(self, config: JanusConfig):
        rank = config.parallel_adapter_rank
        super().__init__(config, rank)
        # All rows share the keys and values of the source, so these have no adapters.
        self.encoder_attn = JanusAttention(config, rank, adapters=("q", "out"))
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        x: Tensor,
        content: KeysValues,
        bias: Tensor,
        source: KeysValues,
        source_bias: Tensor,
        parallel: bool = False,
    ) -> Tensor:
        """Rows [B, R, D] that attend to content rows and source rows; for the biases see `bias_of`."""
        x = self.attend(x, self.self_attn, self.self_attn_layer_norm, content, bias, parallel)
        x = self.attend(x, self.encoder_attn, self.encoder_attn_layer_norm, source, source_bias, parallel)
        return self.feed_forward(x, parallel)


def position_table(config: JanusConfig) -> nn.Embedding:
    """A table of config.max_positions learned positions."""
    return nn.Embedding(config.max_positions + RESERVED_POSITIONS, config.d_model)


class JanusEmbedder(nn.Module):
    """Common part of encoder and decoder: the embeddings of tokens and positions."""

    def __init__(self, config: JanusConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = position_table(config)
        if config.layernorm_embedding:
            self.layernorm_embedding = nn.LayerNorm(config.d_model)
        if config.norm == "pre":
            self.layer_norm = nn.LayerNorm(config.d_model)

    def embed(
        self,
        tokens: Tensor,
        positions: Tensor,
        normalise: bool = True,
        states: Tensor | None = None,
        table: nn.Embedding | None = None,
    ) -> Tensor:
        """Rows [B, R, D] of tokens [B, R] at 0-based positions [B or 1, R].

        Args:
          tokens, positions: ids, and where their rows are.
          normalise: False skips the embedding layer norm, if there is one.
          states: [B, R, D] encoder states, added to the sum.
          table: of the positions; None: the module's own.
        """
        c = self.config
        scale = math.sqrt(c.d_model) if c.scale_embedding else 1.0
        table = self.embed_positions if table is None else table
        x = scale * self.embed_tokens(tokens) + table(positions + RESERVED_POSITIONS)
        if states is not None:
            x = x + states
        if c.layernorm_embedding and normalise:
            x = self.layernorm_embedding(x)
        return F.dropout(x, c.dropout, self.training)

    def finish(self, x: Tensor) -> Tensor:
        """Applies the final layer norm, if there is one."""
        return self.layer_norm(x) if self.config.norm == "pre" else x

    def check_length(self, length: int, what: str) -> None:
        """Raises ValueError if the model has fewer than `length` positions."""
        if length > self.config.max_positions:
            raise ValueError(
                f"{what}: {length} tokens, but this model has {self.config.max_positions} positions; cut the input: "
                "tokenizer(..., truncation=True)"
            )


class JanusEncoder(JanusEmbedder):
    """The encoder: source tokens -> states."""

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
          input_ids: bos ... eos, padded left or right; the first real token has position 0.
          attention_mask: [B, S] true at real tokens; None: at every token but padding.
          output_attentions, output_hidden_states: not supported; arguments because `generate` passes them.
          return_dict: if False, returns a tuple.

        Raises:
          ValueError: an output that is not supported, or more tokens than positions.
        """
        if output_attentions or output_hidden_states:
            raise ValueError("output_attentions, output_hidden_states: this model supports neither; leave them out")
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


class JanusDagLinks(nn.Module):
    """The links of DAG rows: from each vertex a distribution over the vertices behind it.

    It is a mixture of H softmaxes. Queries, keys and the weights of the mixture are linear in the hidden row and a
    learned position of the vertex (DA-Transformer, Huang et al. 2022, arXiv 2205.07459).
    """

    def __init__(self, config: JanusConfig):
        super().__init__()
        self.heads = config.heads
        self.embed_positions = position_table(config)
        self.q_proj = nn.Linear(2 * config.d_model, config.d_model)
        self.k_proj = nn.Linear(2 * config.d_model, config.d_model)
        self.gate = nn.Linear(2 * config.d_model, config.heads)

    def forward(self, rows: Tensor, real: Tensor) -> Tensor:
        """Log-probabilities [B, R, R] float32 of the links from each vertex (axis 1) to each (axis 2); -inf: no link.

        Args:
          rows: [B, R, D] hidden rows.
          real: [B, R] true at real vertices, which come first. The last of them has no successor.
        """
        count = rows.shape[1]
        positions = self.embed_positions(torch.arange(count, device=rows.device) + RESERVED_POSITIONS)
        inputs = torch.cat([rows, positions.expand_as(rows)], dim=-1)
        queries, keys = (
            project(inputs).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q_proj, self.k_proj)
        )
        scores = (queries @ keys.transpose(2, 3)).float() / math.sqrt(queries.shape[-1])
        behind = torch.ones(count, count, dtype=torch.bool, device=rows.device).triu(1)
        exists = behind & real[:, :, None] & real[:, None]
        # A low number and not -inf, so that a vertex without links does not become NaN.
        heads = scores.masked_fill(~exists[:, None], torch.finfo(scores.dtype).min / 2).log_softmax(-1)
        weights = self.gate(inputs).float().log_softmax(-1).transpose(1, 2)
        return (weights[..., None] + heads).logsumexp(1).masked_fill(~exists, -math.inf)


class JanusDecoder(JanusEmbedder):
    """The decoder, with a method for each kind of pass."""

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(JanusDecoderLayer(config) for _ in range(config.decoder_layers))
        self.embed_length = nn.Embedding(config.length_classes, config.d_model)
        self.output_projection = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.ctc_ratio:
            self.embed_blank = nn.Embedding(1, config.d_model)
            if config.ctc_positions == "own":
                self.embed_ctc_positions = position_table(config)
        if config.dag_ratio:
            self.embed_dag_positions = position_table(config)
            self.dag_links = JanusDagLinks(config)

    def sources(self, states: Tensor | None, cache: EncoderDecoderCache | None = None) -> list[KeysValues]:
        """Cross-attention keys and values of each layer, of states [B, S, D]; taken from the cache if it holds them."""
        projected = []
        for i, layer in enumerate(self.layers):
            if cache is not None and cache.is_updated.get(i):
                cached = cache.cross_attention_cache.layers[i]
                projected.append((cached.keys, cached.values))
                continue
            keys_values = layer.encoder_attn.keys_values(states)
            if cache is not None:
                keys_values = cache.cross_attention_cache.update(*keys_values, i)
                cache.is_updated[i] = True
            projected.append(keys_values)
        return projected

    def ar_rows(
        self,
        tokens: Tensor,
        real: Tensor | None,
        states: Tensor | None,
        source_bias: Tensor,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """Hidden rows [N, R, D]: row t predicts the successor of token t of tokens [N, R], which follow the tokens in
        the cache.

        Args:
          tokens: new input tokens.
          real: [N, L + R] true at tokens that are not padding, the cache included; None: at all of them.
          states: [N, S, D] encoder states; None if the cache holds their projections.
          source_bias: [N, 1, 1, S].
          cache: the content rows are appended to it.
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
        sources = self.sources(states, cache)
        return self.advance(x, queries, bias_of(seen, x.dtype), sources, source_bias, cache, parallel=False)

    def nar_rows(self, tokens: Tensor, sources: list[KeysValues], source_bias: Tensor) -> Tensor:
        """Hidden rows [N, T, D] of tokens [N, T]; every row attends to all tokens but padding."""
        self.check_length(tokens.shape[1], "decoder_input_ids")
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.embed(tokens, positions, self.config.nar_layernorm_embedding)
        bias = bias_of((tokens != self.config.pad_token_id)[:, None], x.dtype)
        return self.advance(x, 0, bias, sources, source_bias, None, parallel=True)

    def source_rows(
        self,
        tokens: Tensor,
        states: Tensor | None,
        real: Tensor,
        table: nn.Embedding | None,
        sources: list[KeysValues],
        source_bias: Tensor,
    ) -> Tensor:
        """Hidden rows [B, R, D] of CTC or DAG rows, which attend to each other.

        Args:
          tokens: [B, R] that they read.
          states: [B, R, D] encoder states that they read too; None: none.
          real: [B, R] true at rows that are not padding.
          table: of their positions; None: that of the other rows.
          sources, source_bias: projected encoder states, and their bias [B, 1, 1, S].
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.embed(tokens, positions, states=states, table=table)
        return self.advance(x, 0, bias_of(real[:, None], x.dtype), sources, source_bias, None, parallel=True)

    def ctc_logits(self, rows: Tensor) -> Tensor:
        """Logits [..., V + 1] of CTC rows [..., D]; the last column is the blank."""
        return torch.cat([self.output_projection(rows), rows @ self.embed_blank.weight.T], dim=-1)

    def advance(
        self,
        x: Tensor,
        queries: int,
        bias: Tensor,
        sources: list[KeysValues],
        source_bias: Tensor,
        cache: EncoderDecoderCache | None,
        parallel: bool,
    ) -> Tensor:
        """Runs rows [N, R, D] (first `queries` query rows, then content rows) through all layers; returns the rows that predict.

        `parallel` rows use the adapters.
        """
        for i, layer in enumerate(self.layers):
            content = layer.content(x[:, queries:], parallel)
            if cache is not None:
                content = cache.self_attention_cache.update(*content, i)
            if queries and i == len(self.layers) - 1:
                # The last layer needs only the keys and values of content rows.
                x, bias = x[:, :queries], bias[:, :, :queries]
            x = layer(x, content, bias, sources[i], source_bias, parallel)
        return self.finish(x)


class JanusDraftHeads(nn.Module):
    """Predicts the token behind `token` from the row that predicts it: row + U silu(W [row; token; context] + b).

    Before the first token, `start` takes the row's place, and bos that of the token. The context is an attention of one
    head over the encoder's states, whose query is P Q [row; token].
    """

    def __init__(self, config: JanusConfig):
        super().__init__()
        self.start = nn.Embedding(1, config.d_model)
        width = min(64, config.d_model)
        self.query = nn.Linear(2 * config.d_model, width, bias=False)
        self.key = nn.Linear(width, config.d_model, bias=False)
        self.inner = nn.Linear(3 * config.d_model, 2 * config.d_model)
        self.outer = nn.Linear(2 * config.d_model, config.d_model, bias=False)

    def forward(self, row: Tensor, token: Tensor, states: Tensor, source_bias: Tensor) -> Tensor:
        """Rows and token vectors [B, D] -> rows [B, D]; for encoder states [B, S, D] and `bias_of` their real tokens."""
        read = torch.cat([row, token], dim=-1)
        query = self.key(self.query(read))[:, None]
        context = F.scaled_dot_product_attention(query, states, states, attn_mask=source_bias[:, 0])
        return row + self.outer(F.silu(self.inner(torch.cat([read, context[:, 0]], dim=-1))))


class EndInTime(LogitsProcessor):
    """Forces eos as the last token within the length limit, and keeps the model's score for it.

    ForcedEOSTokenLogitsProcessor of transformers sets the log-probability of the forced eos to 0, so that beam search
    would prefer outputs that are cut off. A shortest length forbids eos before: `before` keeps its score.
    """

    def __init__(self, limits: Tensor, eos_token_id: int):
        """Args:
        limits: [B] or [1], the largest number of tokens of a sequence, the decoder's first tokens included.
        eos_token_id: the id of eos.
        """
        self.limits, self.eos = limits, eos_token_id
        self.eos_scores: Tensor | None = None

    def before(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, of which that of eos is remembered; the first processor of all."""
        self.eos_scores = scores[:, self.eos].clone()
        return scores

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        limits = self.limits.to(scores.device).repeat_interleave(scores.shape[0] // len(self.limits))
        last = input_ids.shape[1] + 1 >= limits
        eos_scores = scores[:, self.eos] if self.eos_scores is None else self.eos_scores
        eos_only = torch.full_like(scores, -math.inf)
        eos_only[:, self.eos] = torch.where(eos_scores == -math.inf, 0.0, eos_scores)
        return torch.where(last[:, None], eos_only, scores)


class JanusForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Encoder, decoder and length head; parameters have the names of the released fairseq checkpoints.

    Example:
      model = AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True)
      tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
      batch = tokenizer(["ein Satz"], return_tensors="pt")
      model.generate(**batch, num_beams=5)
      model.generate_nar(**batch, passes=4)
      model.generate_ctc(**batch, num_beams=4)  # if the model has ctc_ratio above 0
      model.generate_dag(**batch, search="viterbi")  # if the model has dag_ratio above 0
      model.generate_speculative(**batch)  # if the model has draft_heads above 0
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
        if config.draft_heads:
            self.draft_heads = JanusDraftHeads(config)
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
        """Autoregressive logits: those at t predict the successor of token t of decoder_input_ids.

        Args:
          input_ids: [B, S] source, bos ... eos, padded left or right.
          attention_mask: [B, S] true at real source tokens; None: at every token but padding.
          decoder_input_ids: [B, R] new tokens, which follow those in the cache. The first token is bos; with
            ar_start "eos" it is eos, and the second one is bos.
          decoder_attention_mask: [B, L + R] true at real decoder tokens; needed only for left padding.
          encoder_outputs: output of `encoder`, instead of input_ids; needs attention_mask.
          past_key_values: cache that an earlier call returned; it holds only content rows and projected source rows.
          labels: [B, T] tokens to predict, -100 or padding elsewhere; the loss is their mean cross-entropy. Without
            decoder_input_ids they are the whole target, bos ... eos, and the decoder reads the token before each.
          use_cache: whether to return the cache; by default only outside training.
          return_dict: if False, returns a tuple.

        Raises:
          ValueError: no source, nothing to decode, or more tokens than positions.
        """
        c = self.config
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids: nothing to decode; pass them or labels, or call generate")
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
            gold = labels[:, labels.shape[1] - logits.shape[1] :]  # without a bos that no row predicts
            gold = gold.masked_fill(gold == c.pad_token_id, -100)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), gold.flatten())
        output = Seq2SeqLMOutput(
            loss=loss, logits=logits, past_key_values=past_key_values, encoder_last_hidden_state=states
        )
        return output if return_dict or return_dict is None else output.to_tuple()

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs that predict labels [B, T]: the start token, then all labels but the last.

        With ar_start "bos", labels that start with bos contain the start token: the result is [B, T - 1] then.
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
        """Logits [B, C] of the target length, bos and eos included; arguments as in `forward`."""
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        return self._length_logits(states, real)

    def nar_forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of targets with masks, whose tokens all attend to each other: at a mask, of the hidden
        token.

        Args:
          input_ids, attention_mask, encoder_outputs: as in `forward`.
          decoder_input_ids: [B, T] bos ... eos with masks, padded.

        Raises:
          ValueError: no source, nothing to decode, or more tokens than positions.
        """
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids: nothing to decode; pass targets with masks, or call generate_nar")
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        sources, bias = self.decoder.sources(states), bias_of(real[:, None], states.dtype)
        return self.decoder.output_projection(self.decoder.nar_rows(decoder_input_ids, sources, bias))

    def ctc_forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, R, V + 1] of the CTC rows (the last column is the blank), and the number of rows [B] of each
        sentence.

        To train with `F.ctc_loss`, pass `logits.log_softmax(-1).transpose(0, 1)` as log-probabilities,
        `config.blank_token_id` as blank, and targets without bos and eos.

        Args:
          input_ids, attention_mask, encoder_outputs: as in `forward`; with ctc_input "source" input_ids are needed.

        Raises:
          ValueError: a model without CTC rows, no source, or more rows than positions.
        """
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        rows, of_sentence = self._ctc_rows(input_ids, states, real)
        return self.decoder.ctc_logits(rows), of_sentence.sum(1)

    def dag_forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, R, V] of the DAG rows, log-probabilities [B, R, R] of the links from axis 1 to axis 2 (-inf: no
        link), and the number of rows [B] of each sentence.

        A path begins at the first row and ends at the sentence's last one. The two emit bos and eos in training.

        Args:
          input_ids, attention_mask, encoder_outputs: as in `forward`.

        Raises:
          ValueError: a model without DAG rows, no source, or more rows than positions.
        """
        states, real = self._encoded(input_ids, attention_mask, encoder_outputs)
        rows, vertices = self._dag_rows(states, real)
        return self.decoder.output_projection(rows), self.decoder.dag_links(rows, vertices), vertices.sum(1)

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """`generate` of transformers, one token at a time: greedy search, beam search, sampling.

        Four things are added. A missing attention_mask is computed from the padding. With ar_start "eos" the decoder
        starts with eos and bos, so that bos is neither searched for nor scored. The last token within the length limit
        is eos, with the model's probability (`EndInTime`). The limit is max_length, and at most the positions; with
        max_length_a and max_length_b in the generation config also a * source tokens + b tokens, then eos. With labels,
        which Seq2SeqTrainer passes, labels and decoder inputs are left out: the inputs are made of the labels.

        With the settings of `default_generation_config` (the default, unless the model's directory has other settings)
        the tokens and scores equal those of mode "ar" of janus_jax: num_beams is `beam` (1: greedy), length_penalty is
        `lenpen` (both divide by the number of tokens with eos, without bos), early_stopping "never", False and True are
        `stop` "best", "current" and "released" (True: only the best hypothesis is equal), min_new_tokens is
        `min_length`, no_repeat_ngram_size is `no_repeat_ngram` (from 2 on), suppress_tokens are pad, bos and mask. Do
        not set
        forced_eos_token_id or forced_bos_token_id: they score the forced token 0.

        Args:
          inputs: [B, S] source tokens, or as input_ids.
          generation_config, **kwargs: as in transformers.

        Returns:
          Token ids [B, T] with the decoder's first tokens (bos; eos and bos), ending in eos, padded.

        Raises:
          ValueError: the model was not trained for it.
        """
        c = self.config
        self._check_trained("ar")
        if kwargs.pop("labels", None) is not None:  # of Seq2SeqTrainer, which also passes inputs made of them
            kwargs.pop("decoder_input_ids", None)
            kwargs.pop("decoder_attention_mask", None)
        source = inputs if inputs is not None else kwargs.get("input_ids")
        if source is not None and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = (source != c.pad_token_id).long()
        if c.ar_start == "eos" and kwargs.get("decoder_input_ids") is None:
            like = source if source is not None else kwargs["encoder_outputs"][0]
            start = torch.tensor([c.start_tokens], device=like.device)
            kwargs["decoder_input_ids"] = start.repeat(like.shape[0], 1)
        return super().generate(inputs, generation_config, **kwargs)

    def _check_trained(self, mode: str, rerank: str = "none") -> None:
        """Raises ValueError if the model was not trained for this mode, or not for the one that reranks."""
        trained = self.config.trained_modes
        if mode in ("ctc", "dag") and not getattr(self.config, f"{mode}_ratio"):
            return  # a model without these rows has an error of its own
        for one in (mode, *(["ar"] if rerank == "ar" else [])):
            if trained is not None and one not in trained:
                raise ValueError(
                    f"this model was trained only for {' and '.join(trained)}, not for {one}: its output would be noise. To "
                    "get it nevertheless, set model.config.trained_modes to None"
                )

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
        prefix = kwargs.get("input_ids_seq_length", len(self.config.start_tokens)) - len(self.config.start_tokens)
        limits = self._limits(generation_config, mask, prefix)
        end = EndInTime(limits, eos if isinstance(eos, int) else eos[0])
        processors.insert(0, end.before)
        processors.append(end)
        return processors

    def _limits(self, generation_config: Any, mask: Tensor | None, prefix: int) -> Tensor:
        """The largest number of tokens of each output [B] or [1], the decoder's first tokens included.

        Args:
          generation_config: its max_length, max_length_a and max_length_b.
          mask: [B, S] true at real source tokens.
          prefix: tokens that an output begins with, the decoder's first tokens left out.
        """
        frame = len(self.config.start_tokens)
        longest = frame - 1 + self.config.max_positions
        if generation_config.max_length is not None:
            longest = min(generation_config.max_length, longest)
        a, b = (getattr(generation_config, name, None) for name in ("max_length_a", "max_length_b"))
        if mask is None or a is None or b is None:
            return torch.tensor([longest])
        inner = (mask.sum(1) - 2).clamp(min=0).cpu()  # Apple's GPUs have no double numbers
        allowed = ((a * inner.double() + b).long() + 1).clamp(min=prefix + 1)
        allowed = torch.where(inner > 0, allowed, 1)  # an empty source has an empty output
        return (frame + allowed).clamp(max=longest)

    @torch.no_grad()
    def generate_speculative(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        draft_tokens: int | None = None,
        return_passes: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The tokens of greedy `generate` (num_beams 1) in fewer passes of the decoder, by draft heads.

        A pass feeds the last token and `draft_tokens` guesses of the heads. The longest run of guesses that greedy search
        would have emitted is kept, and its next token. Sentences are decoded one after the other, as in assisted
        generation of transformers. Of the generation config, max_length, max_length_a, max_length_b, min_new_tokens and
        suppress_tokens count. Without max_length an output may have as many tokens as the model has positions.

        Args:
          input_ids, attention_mask: as in `forward`.
          draft_tokens: guesses a pass; None: one of each head.
          return_passes: whether to return the number of decoder passes [B] too.

        Returns:
          Token ids [B, T] with the decoder's first tokens, ending in eos, padded.

        Raises:
          ValueError: the model has no heads or no trained AR half, too many guesses, or a setting of the generation
            config that drafts cannot keep.
        """
        c, settings = self.config, self.generation_config
        if not c.draft_heads:
            raise ValueError("draft_heads: this model has none; train them with configs/heads.py of janus_jax")
        self._check_trained("ar")
        count = c.draft_heads if draft_tokens is None else draft_tokens
        if not 1 <= count <= c.draft_heads:
            raise ValueError(f"draft_tokens: {count}; choose 1 to {c.draft_heads}, the number of heads")
        changed = {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "bad_words_ids": None, "do_sample": False}
        changed |= {"min_length": 0, "max_new_tokens": None, "forced_bos_token_id": None, "begin_suppress_tokens": None}
        changed |= {"encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "sequence_bias": None}
        changed |= {"exponential_decay_length_penalty": None, "guidance_scale": None, "stop_strings": None}
        for name, usual in changed.items():
            if getattr(settings, name, None) not in (None, usual):
                raise ValueError(
                    f"{name}: generate_speculative has no such setting; use generate, or set it to {usual}"
                )
        states, real = self._encoded(input_ids, attention_mask, None)
        limits = self._limits(settings, real.long(), 0).expand(len(states)).tolist()
        made = [
            self._speculate(states[i : i + 1], bias_of(real[i : i + 1, None], states.dtype), limits[i], count)
            for i in range(len(states))
        ]
        longest = max(len(tokens) for tokens, _ in made)
        rows = [tokens + [c.pad_token_id] * (longest - len(tokens)) for tokens, _ in made]
        ids = torch.tensor(rows, device=states.device)
        return (ids, torch.tensor([passes for _, passes in made])) if return_passes else ids

    def _speculate(self, states: Tensor, source_bias: Tensor, limit: int, count: int) -> tuple[list[int], int]:
        """The tokens of one sentence, at most `limit`, and the number of decoder passes."""
        c, settings, decoder = self.config, self.generation_config, self.decoder
        scale = math.sqrt(c.d_model) if c.scale_embedding else 1.0
        shortest = settings.min_new_tokens or 0
        tokens, cache, passes = list(c.start_tokens), EncoderDecoderCache(DynamicCache(), DynamicCache()), 0
        frame = len(tokens)
        never = torch.zeros(c.vocab_size, device=states.device)
        never[list(settings.suppress_tokens or [])] = -math.inf
        frequent = decoder.output_projection.weight[: c.draft_vocab or max(c.vocab_size // 4, 1024)]

        def draft(row: Tensor) -> list[int]:
            """What the heads guess behind the last token, which `row` [1, D] predicts."""
            last, drafted = tokens[-1], []
            for _ in range(min(count, limit - len(tokens) - 1)):
                vector = scale * decoder.embed_tokens.weight[last : last + 1]
                row = self.draft_heads(row, vector, states, source_bias)
                last = int((F.linear(row, frequent).float() + never[: len(frequent)]).argmax())
                drafted.append(last)
            return drafted

        drafted = draft(self.draft_heads.start.weight)
        while True:
            past = cache.get_seq_length()
            fed = torch.tensor([tokens[past:] + drafted], device=states.device)
            rows = decoder.ar_rows(fed, None, states, source_bias, cache)[0, -len(drafted) - 1 :]
            logits = decoder.output_projection(rows).float() + never
            passes += 1
            emitted = len(tokens) - frame
            logits[: max(shortest - emitted, 0), c.eos_token_id] = -math.inf
            greedy = logits.argmax(-1).tolist()
            for at, token in enumerate(greedy):
                chosen = c.eos_token_id if len(tokens) + 1 >= limit else token
                tokens.append(chosen)
                if chosen == c.eos_token_id:
                    return tokens, passes
                if at == len(drafted) or drafted[at] != chosen:
                    break
            if rejected := cache.get_seq_length() - len(tokens) + 1:
                cache.self_attention_cache.crop(-rejected)
            drafted = draft(rows[at : at + 1])

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
        revise: bool = False,
        merge_repeats: bool = False,
        max_length: int | None = None,
        return_scores: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mask-predict (Ghazvininejad et al. 2019), with the same tokens as mode "nar" of janus_jax.

        For each of `length_beam` lengths, all tokens are masked at first. A pass fills the masks with the most probable
        tokens; then the least probable ones are masked again, fewer after each pass. The output is the candidate with
        the highest mean log-probability, that of its length included. pad, bos and mask are never emitted, eos ends the
        output, and a candidate without tokens is chosen last.

        Args:
          input_ids, attention_mask: as in `forward`.
          passes: number of decoder passes.
          length_beam: number of lengths that are tried.
          lengths: "top": the most probable ones, or "contiguous": those around the most probable.
          mask_schedule: after pass s of P, of n tokens "linear" masks n (P - s) / P again, "cosine" n cos(pi s / 2P).
          early_stop: whether to stop when a pass changes nothing.
          revise: whether each pass also predicts the tokens anew that are not masked.
          merge_repeats: whether to drop a token that repeats the token before it.
          max_length: largest number of tokens, bos and eos included; None: that of `generate`.
          return_scores: whether to return the scores [B] too.

        Returns:
          Token ids [B, T], bos ... eos, padded.

        Raises:
          ValueError: an impossible setting, or the model was not trained for it.
        """
        c = self.config
        self._check_trained("nar")
        if lengths not in ("top", "contiguous") or mask_schedule not in ("linear", "cosine"):
            raise ValueError(
                f"lengths {lengths!r} must be 'top' or 'contiguous', mask_schedule {mask_schedule!r} 'linear' or 'cosine'"
            )
        if passes < 1 or length_beam < 1:
            raise ValueError(f"passes {passes} and length_beam {length_beam} must be at least 1")
        states, real = self._encoded(input_ids, attention_mask, None)
        length_logits = self._length_logits(states, real)
        tried = candidate_lengths(length_logits, length_beam, self._max_predicted_length(max_length), lengths)
        tried = torch.where(self._has_tokens(input_ids, real), tried, SHORTEST)
        sources = [tuple(x.repeat_interleave(length_beam, 0) for x in pair) for pair in self.decoder.sources(states)]
        bias = bias_of(real[:, None], states.dtype).repeat_interleave(length_beam, 0)
        search = _MaskPredict(self, sources, bias, passes, mask_schedule, early_stop, revise)
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
        rerank: str = "none",
        length_penalty: float | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One pass of CTC rows (Graves et al. 2006), with the same tokens as mode "ctc" of janus_jax.

        Each row emits a token or the blank. Merging repeats and then dropping blanks gives the output. bos, pad, eos
        and mask are never emitted.

        Args:
          input_ids, attention_mask: as in `forward`.
          num_beams: 1: the most probable token of each row. More: a prefix beam search, which adds up the probabilities
            of all alignments of an output.
          ctc_tokens: number of most probable tokens of each row that the beam search considers.
          num_return_sequences: number of outputs of each sentence, best first.
          max_length: largest number of tokens, bos and eos included; None: that of `generate`.
          return_scores: whether to return the log-probabilities [B * num_return_sequences] too; with one beam, that of
            the single alignment.
          blank_penalty: subtracted from the blank's log-probability in every row, against outputs that are too short;
            the scores include it.
          rerank: who chooses among the outputs of the search, and gives the scores: the search itself ("none"), or the
            autoregressive half ("ar"), by its log-probability divided by tokens ** length_penalty, eos counted. An output
            without tokens is chosen last then.
          length_penalty: see `rerank`; None: that of `generate`.

        Returns:
          Token ids [B * num_return_sequences, T], bos ... eos, padded. If a sentence has fewer outputs, the others are
          empty and score -inf.

        Raises:
          ValueError: a model without CTC rows or not trained for them, an impossible setting, or more rows than positions.
        """
        self._check_trained("ctc", rerank)
        check_beam(num_beams, num_return_sequences, rerank, ctc_tokens=ctc_tokens)
        longest = self._max_output(max_length)
        states, real = self._encoded(input_ids, attention_mask, None)
        rows, of_sentence = self._ctc_rows(input_ids, states, real)
        of_sentence = of_sentence & self._has_tokens(input_ids, real)
        emitted = self._ctc_emissions(rows, of_sentence, 1 if num_beams == 1 else ctc_tokens)
        emitted.blank.sub_(blank_penalty)
        outputs = best_path(emitted, longest) if num_beams == 1 else prefix_beam_search(emitted, num_beams, longest)
        if rerank == "ar":
            outputs = self._reranked(outputs, states, real, length_penalty)
        ids, scores = first_outputs(outputs, num_return_sequences, self.config)
        return (ids, scores) if return_scores else ids

    @torch.no_grad()
    def generate_dag(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        search: str = "lookahead",
        num_beams: int = 5,
        dag_tokens: int = 4,
        beta: float = 1.0,
        length_beta: float = 1.0,
        num_return_sequences: int = 1,
        max_length: int | None = None,
        return_scores: bool = False,
        rerank: str = "none",
        length_penalty: float | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One pass of DAG rows (Huang et al. 2022), with the same tokens as mode "dag" of janus_jax.

        Each row is a vertex of a graph. A path follows links from the first vertex to the last one, and each vertex
        between them emits a token. Equal neighbours are both kept. bos, pad, eos and mask are never emitted.

        Args:
          input_ids, attention_mask: as in `forward`.
          search: "greedy": the most probable link each time. "lookahead": the most probable link and token together.
            "viterbi": the best path of all lengths. "beam": the best outputs, each with the probability of all its
            paths.
          num_beams: search "beam": number of prefixes.
          dag_tokens: search "beam": number of most probable tokens of each vertex that it considers.
          beta: search "lookahead": weight of a token's log-probability beside that of the link to it.
          length_beta: a score is the log-probability divided by tokens ** length_beta, eos counted; searches "viterbi"
            and "beam" choose by it.
          num_return_sequences: number of outputs of each sentence, best first; only search "beam" has more than one.
          max_length: largest number of tokens, bos and eos included; None: that of `generate`. "greedy" and "lookahead"
            cut longer outputs, the others choose among shorter ones.
          return_scores: whether to return the scores [B * num_return_sequences] too.
          rerank, length_penalty: as in `generate_ctc`.

        Returns:
          Token ids [B * num_return_sequences, T], bos ... eos, padded. If a sentence has fewer outputs, the others are
          empty and score -inf.

        Raises:
          ValueError: a model without DAG rows or not trained for them, an impossible setting, or more rows than positions.
        """
        self._check_trained("dag", rerank)
        if search not in DAG_SEARCHES:
            raise ValueError(f"search: {search!r} is not one of {', '.join(map(repr, DAG_SEARCHES))}")
        if search != "beam" and num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences: {num_return_sequences}, but search {search!r} has one output; choose search 'beam'"
            )
        check_beam(num_beams, num_return_sequences, rerank, dag_tokens=dag_tokens)
        longest = self._max_output(max_length)
        states, real = self._encoded(input_ids, attention_mask, None)
        rows, vertices = self._dag_rows(states, real)
        vertices = vertices & self._has_tokens(input_ids, real)
        longest = min(longest, max(vertices.shape[1] - SHORTEST, 0))  # a token for each vertex between the ends
        graph = self._dag_graph(rows, vertices, dag_tokens if search == "beam" else 1)
        if search == "beam":
            outputs = graph_beam_search(graph, num_beams, length_beta, longest)
        elif search == "viterbi":
            outputs = viterbi(graph, length_beta, longest)
        else:
            outputs = follow(graph, beta if search == "lookahead" else 0.0, length_beta, longest)
        if rerank == "ar":
            outputs = self._reranked(outputs, states, real, length_penalty)
        ids, scores = first_outputs(outputs, num_return_sequences, self.config)
        return (ids, scores) if return_scores else ids

    def _ctc_rows(self, input_ids: Tensor | None, states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden CTC rows [B, R, D] of encoded sources [B, S], and which of them [B, R] are not padding."""
        c = self.config
        of_sentence = self._rows_of_sentences("ctc", real)
        lengths, counts = real.sum(1, keepdim=True), of_sentence.sum(1, keepdim=True)
        row = torch.arange(of_sentence.shape[1], device=real.device)
        nth = torch.minimum(row * lengths // counts.clamp(min=1), (lengths - 1).clamp(min=0))
        first_to_last = (~real).byte().argsort(dim=1, stable=True)  # padding may be on the left
        places = first_to_last.gather(1, nth)  # [B, R] of the source, evenly spaced
        if c.ctc_input == "source":
            if input_ids is None:
                raise ValueError("input_ids: CTC rows of this model read the source tokens; pass them")
            read = input_ids.gather(1, places)
        else:
            read = torch.full_like(places, c.mask_token_id)
        copied = states.take_along_dim(places[..., None], 1) if c.ctc_input == "encoder" else None
        table = self.decoder.embed_ctc_positions if c.ctc_positions == "own" else None
        sources, bias = self.decoder.sources(states), bias_of(real[:, None], states.dtype)
        return self.decoder.source_rows(read, copied, of_sentence, table, sources, bias), of_sentence

    def _dag_rows(self, states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden DAG rows [B, R, D] of encoded sources [B, S], and which of them [B, R] are not padding."""
        c = self.config
        vertices = self._rows_of_sentences("dag", real)
        vertex = torch.arange(vertices.shape[1], device=real.device)
        read = torch.where(vertex == vertices.sum(1, keepdim=True) - 1, c.eos_token_id, c.mask_token_id)
        read[:, 0] = c.bos_token_id
        sources, bias = self.decoder.sources(states), bias_of(real[:, None], states.dtype)
        table = self.decoder.embed_dag_positions
        return self.decoder.source_rows(read, None, vertices, table, sources, bias), vertices

    def _rows_of_sentences(self, family: str, real: Tensor) -> Tensor:
        """Which rows [B, R] of the family "ctc" or "dag" belong to sources [B, S], and are not padding.

        Raises:
          ValueError: a model without such rows, or more rows than positions.
        """
        c, name = self.config, family.upper()
        if not getattr(c, f"{family}_ratio"):
            raise ValueError(
                f"this model has no {name} rows ({family}_ratio 0); call generate or generate_nar, or train one with "
                f"objective janus_{family} or {family}"
            )
        slots = c.ctc_slots if family == "ctc" else c.dag_slots
        counts = torch.tensor([[slots(length)] for length in real.sum(1).tolist()], device=real.device)
        row = torch.arange(max(int(counts.max()), 1), device=real.device)
        if len(row) > c.max_positions:
            raise ValueError(
                f"input_ids: {len(row)} {name} rows, but this model has {c.max_positions} positions; cut the input: "
                "tokenizer(..., truncation=True)"
            )
        return row < counts

    def _has_tokens(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """Which sources [B, 1] have tokens beside bos and eos. The others have an empty output: no row, no token."""
        is_frame = (input_ids == self.config.bos_token_id) | (input_ids == self.config.eos_token_id)
        return (real & ~is_frame).any(1, keepdim=True)

    def _ctc_emissions(self, rows: Tensor, real: Tensor, count: int) -> "Emissions":
        """What the `real` [B, R] rows of CTC rows [B, R, D] may emit: the `count` most probable tokens, and the blank."""
        logits = self.decoder.ctc_logits(rows[real]).float()
        tokens, log_probs = self._best_tokens(logits, count)
        blank = logits[:, self.config.blank_token_id] - logits.logsumexp(-1)
        return Emissions(with_padding(tokens, real), with_padding(log_probs, real), with_padding(blank, real), real)

    def _dag_graph(self, rows: Tensor, real: Tensor, count: int) -> "Graph":
        """The graph of the `real` [B, R] rows of DAG rows [B, R, D], each with its `count` most probable tokens."""
        tokens, log_probs = self._best_tokens(self.decoder.output_projection(rows[real]).float(), count)
        links = self.decoder.dag_links(rows, real)
        return graph_of(links, with_padding(tokens, real), with_padding(log_probs, real), real)

    def _best_tokens(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` most probable tokens of logits [X, V] (CTC: [X, V + 1]), and their log-probabilities: [X, k] each.

        Of the special tokens, only unk may be among them.
        """
        c = self.config
        banned = [c.bos_token_id, c.pad_token_id, c.eos_token_id, *range(c.vocab_size, logits.shape[-1])]
        banned += [c.mask_token_id] if c.mask_token_id != c.unk_token_id else []
        allowed = logits.clone()
        allowed[:, banned] = -math.inf
        best = allowed.topk(min(count, logits.shape[-1] - len(banned)), dim=-1)
        return best.indices, best.values - logits.logsumexp(-1, keepdim=True)

    def _reranked(self, outputs: Outputs, states: Tensor, real: Tensor, length_penalty: float | None) -> Outputs:
        """Outputs of encoded sources [B, S] with the scores of the autoregressive half, best first."""
        tokens, lengths, scores = outputs
        if length_penalty is None:
            length_penalty = self.generation_config.length_penalty
        if length_penalty is None:  # a generation config without it
            length_penalty = 1.0
        c, count = self.config, tokens.shape[1]
        targets = framed(tokens.flatten(0, 1), lengths.flatten(), c)
        start = torch.tensor([c.start_tokens], device=targets.device).repeat(len(targets), 1)
        states, real = states.repeat_interleave(count, 0), real.repeat_interleave(count, 0)
        fed = torch.cat([start, targets[:, 1:-1]], dim=1)
        rows = self.decoder.ar_rows(fed, None, states, bias_of(real[:, None], states.dtype), None)
        labels = targets[:, 1:]
        is_token = labels != c.pad_token_id
        logits = self.decoder.output_projection(rows[:, start.shape[1] - 1 :][is_token]).float()
        log_probs = logits.gather(1, labels[is_token][:, None])[:, 0] - logits.logsumexp(-1)
        totals = with_padding(log_probs, is_token).sum(1) / is_token.sum(1) ** length_penalty
        scores = totals.view_as(scores).masked_fill(scores == -math.inf, -math.inf)
        best = scores.masked_fill(lengths == 0, -math.inf).sort(dim=1, descending=True, stable=True).indices
        return tokens.take_along_dim(best[..., None], 1), lengths.gather(1, best), scores.gather(1, best)

    def _max_tokens(self, max_length: int | None) -> int:
        """Largest number of tokens of an output, bos and eos included."""
        c = self.config
        if max_length is None:
            default = self.generation_config.max_length
            max_length = c.max_positions if default is None else default - len(c.start_tokens) + 1
        return min(max_length, c.max_positions)

    def _max_output(self, max_length: int | None) -> int:
        """Largest number of tokens of an output, bos and eos left out.

        Raises:
          ValueError: there is no room for bos and eos.
        """
        longest = self._max_tokens(max_length)
        if longest < SHORTEST:
            raise ValueError(f"max_length: {longest} tokens cannot hold bos and eos; raise it")
        return longest - SHORTEST

    def _max_predicted_length(self, max_length: int | None) -> int:
        """Largest number of tokens of an output whose length the length head chooses."""
        return min(self._max_tokens(max_length), self.config.length_classes - 1)

    def _length_logits(self, states: Tensor, real: Tensor) -> Tensor:
        weights = real[:, :, None].float()
        mean = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return mean @ self.decoder.embed_length.weight.float().T

    def _encoded(self, input_ids: Tensor | None, attention_mask: Tensor | None, outputs: Any) -> tuple[Tensor, Tensor]:
        """Encoder states [B, S, D], computed unless `outputs` holds them, and which of them [B, S] belong to real tokens."""
        if outputs is None:
            if input_ids is None:
                raise ValueError("input_ids: there is no source; pass them or encoder_outputs")
            outputs = self.encoder(input_ids, attention_mask)
        states = outputs[0]
        if attention_mask is not None:
            return states, attention_mask.bool()
        if input_ids is not None:
            return states, input_ids != self.config.pad_token_id
        return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)


class _MaskPredict:
    """Mask-predict for targets of known lengths; an instance runs once."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        sources: list[KeysValues],
        source_bias: Tensor,
        passes: int,
        schedule: str,
        early_stop: bool,
        revise: bool,
    ):
        self.model, self.config = model, model.config
        self.sources, self.source_bias = sources, source_bias
        self.passes, self.schedule, self.early_stop, self.revise = passes, schedule, early_stop, revise

    def run(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, T] of targets of these lengths [N], and their log-probabilities [N, T]: 0 at bos, eos and padding."""
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
            is_open = free if self.revise else free & (tokens == c.mask_token_id)
            new, new_scores = self.fill(tokens, scores, is_open)
            if self.early_stop:
                new = torch.where(done, filled, new)
                new_scores = torch.where(done, filled_scores, new_scores)
                done = done | (new == filled).all(1, keepdim=True)
            filled, filled_scores = new, new_scores
            remasked = free & self.least_probable(filled_scores, free, number) & ~done
            tokens = torch.where(remasked, c.mask_token_id, filled)
            scores = torch.where(remasked, 0.0, filled_scores)
            if bool(done.all()):
                break
        return filled, filled_scores

    def fill(self, tokens: Tensor, scores: Tensor, is_open: Tensor) -> tuple[Tensor, Tensor]:
        """Fills open slots with the most probable allowed tokens and their log-probabilities; other slots stay as they are."""
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

    def least_probable(self, scores: Tensor, free: Tensor, number: int) -> Tensor:
        """True at the slots [N, T] to mask again after pass `number`; among equal scores, at lower positions first."""
        counts = remask_counts(free.shape[1], self.passes, number, self.schedule)
        count = torch.tensor(counts, device=scores.device)[free.sum(1, keepdim=True)]
        order = scores.masked_fill(~free, math.inf).argsort(dim=1, stable=True)
        return order.argsort(dim=1) < count


def remask_counts(max_tokens: int, passes: int, number: int, schedule: str) -> list[int]:
    """How many of n tokens are masked again after pass `number` of `passes`, for n = 0 ... max_tokens."""
    if schedule == "linear":
        return [n * (passes - number) // passes for n in range(max_tokens + 1)]
    share = math.cos(0.5 * math.pi * number / passes) if number < passes else 0.0
    return [int(n * share) for n in range(max_tokens + 1)]


def candidate_lengths(length_logits: Tensor, count: int, longest: int, choice: str) -> Tensor:
    """Lengths to try [B, count], bos and eos included, from length logits [B, C]; see `generate_nar`.

    Raises:
      ValueError: there are fewer than `count` possible lengths.
    """
    if choice == "contiguous":
        best = first_of_best(length_logits)[:, None].clamp(min=SHORTEST)
        around = best - count // 2 + torch.arange(count, device=best.device)
        return around.clamp(SHORTEST, longest)
    choices = longest + 1 - SHORTEST
    if count > choices:
        raise ValueError(
            f"length_beam is {count}, but only {choices} lengths lie between {SHORTEST} and {longest}; lower it"
        )
    allowed = length_logits[:, SHORTEST : longest + 1]
    return allowed.sort(dim=1, descending=True, stable=True).indices[:, :count] + SHORTEST


def first_of_best(values: Tensor) -> Tensor:
    """The index [B] of the largest of values [B, X]; among equal values, the first."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, 0]


def end_at_eos(tokens: Tensor, scores: Tensor, config: JanusConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts filled targets [N, T] after their first eos.

    Returns:
      The tokens [N, T], the mean log-probability [N] of the filled tokens that remain (a filled eos included), and
      which targets [N] have no token left.
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
    """The best target [B, T] of each sentence among filled targets [B * K, T] of the tried lengths [B, K], and its
    score [B].

    A score is the mean log-probability of the filled tokens that remain, plus the log-probability of the length divided
    by the number of tokens of that length.
    """
    tokens, scores, empty = end_at_eos(tokens, scores, config)
    logp = F.log_softmax(length_logits, dim=-1).gather(1, tried)
    scores = scores.view(tried.shape) + logp / (tried - 2).clamp(min=1)
    best = first_of_best(scores.masked_fill(empty.view(tried.shape), -math.inf))
    row = torch.arange(len(best), device=best.device)
    return tokens.view(*tried.shape, -1)[row, best], scores[row, best]


def without_repeats(tokens: Tensor, pad: int) -> Tensor:
    """Targets [B, T] without tokens that repeat the token before them, padded."""
    kept = [[t for i, t in enumerate(row) if t != pad and (not i or t != row[i - 1])] for row in tokens.tolist()]
    longest = max(map(len, kept))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in kept], device=tokens.device)


def check_beam(num_beams: int, num_return_sequences: int, rerank: str, **others: int) -> None:
    """Raises ValueError if a number is below 1, more outputs are asked for than there are beams, or `rerank` is unknown."""
    if rerank not in ("none", "ar"):
        raise ValueError(f"rerank: {rerank!r} is not one of 'none', 'ar'")
    for name, value in {"num_beams": num_beams, "num_return_sequences": num_return_sequences, **others}.items():
        if value < 1:
            raise ValueError(f"{name}: {value}; it must be at least 1")
    if num_return_sequences > num_beams:
        raise ValueError(
            f"num_return_sequences: {num_return_sequences} of {num_beams} beams; raise num_beams or lower it"
        )


def with_padding(values: Tensor, real: Tensor) -> Tensor:
    """Values [X, ...] of the X `real` [B, R] rows as [B, R, ...]; 0 at padding."""
    padded = values.new_zeros((*real.shape, *values.shape[1:]))
    padded[real] = values
    return padded


@dataclass(frozen=True)
class Emissions:
    """What CTC rows may emit, with log-probabilities over vocabulary and blank together."""

    tokens: Tensor  # [B, R, k], the most probable tokens of each row, all different
    log_probs: Tensor  # [B, R, k]
    blank: Tensor  # [B, R]
    real: Tensor  # [B, R], rows that are not padding: the first ones of each sentence


def best_path(emitted: Emissions, longest: int) -> Outputs:
    """The output of the most probable choice of each row: a a - a b gives a a b. If a token and the blank tie, the
    blank wins.

    Args:
      emitted: emissions of B sentences, tokens best first.
      longest: L, largest number of tokens of an output; longer outputs are cut.

    Returns:
      Tokens [B, 1, L], lengths [B, 1] of the outputs, and the log-probability [B, 1] of the choices.
    """
    log_probs = emitted.log_probs[..., 0]
    is_label = emitted.real & (log_probs > emitted.blank)
    labels = emitted.tokens[..., 0].masked_fill(~is_label, -1)
    is_new = is_label & (labels != F.pad(labels, (1, 0), value=-1)[:, :-1])
    tokens = labels.gather(1, (~is_new).byte().argsort(dim=1, stable=True))[:, :longest]
    chosen = torch.maximum(log_probs, emitted.blank).masked_fill(~emitted.real, 0.0)
    return tokens[:, None], is_new.sum(1, keepdim=True).clamp(max=longest), chosen.sum(1, keepdim=True)


def prefix_beam_search(emitted: Emissions, beam: int, longest: int) -> Outputs:
    """The most probable outputs, each with the probability of all its alignments (Graves 2006; Hannun et al. 2014).

    A prefix is the output of the rows read so far. After each row, the K most probable prefixes are kept.

    Args:
      emitted: emissions of B sentences. A sentence without real rows has only the empty output, with probability 1.
      beam: K, number of prefixes.
      longest: L, largest number of tokens of an output.

    Returns:
      Tokens [B, K, L], lengths [B, K] and log-probabilities [B, K] of the outputs, best first. If there are fewer than
      K outputs, the others are empty and have -inf.
    """
    none = -math.inf
    sentences, rows, count = emitted.tokens.shape
    tokens = emitted.tokens.new_full((sentences, beam, max(longest, 1)), -1)
    lengths = emitted.tokens.new_zeros(sentences, beam)
    last = emitted.tokens.new_full((sentences, beam), -1)
    # For each prefix: the log-probability of alignments that end in a blank, and of those that end in its last token.
    # Before the first row only the empty prefix exists; any token may follow it, as after a blank.
    blank = emitted.log_probs.new_full((sentences, beam), none)
    label = blank.clone()
    blank[:, 0] = 0.0
    # [B, K, K]: prefix i is a prefix of prefix j, or equal to it.
    begins = torch.zeros(sentences, beam, beam, dtype=torch.bool, device=tokens.device)
    begins[:, 0, 0] = True
    for row in range(rows):
        # A padding row emits the blank with probability 1, which changes nothing.
        real, candidates = emitted.real[:, row], emitted.tokens[:, row]
        log_probs = emitted.log_probs[:, row].masked_fill(~real[:, None], none)
        log_blank = emitted.blank[:, row].masked_fill(~real, 0.0)
        total = torch.logaddexp(blank, label)
        is_last = candidates[:, None] == last[:, :, None]  # [B, K, k]

        # A prefix grows by a token. It grows by its last token only after a blank: without a blank, the two are merged.
        grown = torch.where(is_last, blank[:, :, None], total[:, :, None]) + log_probs[:, None]
        grown = grown.masked_fill((lengths >= longest)[:, :, None], none)
        # A prefix that grows into another prefix of the beam adds its probability there.
        is_parent = begins & (lengths[:, :, None] + 1 == lengths[:, None])  # prefix i is j without its last token
        is_twin = is_parent[..., None] & is_last[:, None]  # [B, K, K, k]: prefix i and token c are prefix j
        joining = torch.where(is_twin, grown[:, :, None], none).amax(dim=(1, 3))
        grown = grown.masked_fill(is_twin.any(2), none)

        # A prefix stays the same if the row emits a blank or the prefix's last token.
        repeated = torch.where(is_last, log_probs[:, None], none).amax(2)
        blank, label = total + log_blank[:, None], torch.logaddexp(label + repeated, joining)

        every = torch.cat([torch.logaddexp(blank, label), grown.flatten(1)], dim=1)
        scores, chosen = (x[:, :beam] for x in every.sort(dim=1, descending=True, stable=True))
        grows = chosen >= beam
        origin = torch.where(grows, (chosen - beam) // count, chosen)
        last = torch.where(grows, candidates.gather(1, (chosen - beam) % count), last.gather(1, origin))
        lengths = lengths.gather(1, origin) + grows
        tokens = tokens.gather(1, origin[..., None].expand_as(tokens))
        at_end = torch.arange(tokens.shape[2], device=tokens.device) == lengths[..., None] - 1
        tokens = torch.where(at_end, last[..., None], tokens)
        blank = blank.gather(1, origin).masked_fill(grows, none)
        label = torch.where(grows, scores, label.gather(1, origin))

        begins = _begins(begins, origin, tokens, lengths, last, scores > none)
    scores = torch.logaddexp(blank, label)
    return tokens, lengths.masked_fill(scores == none, 0), scores


def _begins(before: Tensor, origin: Tensor, tokens: Tensor, lengths: Tensor, last: Tensor, exists: Tensor) -> Tensor:
    """Which prefixes i are prefixes of which j [B, K, K], from the same relation of their origins [B, K] one row
    before.

    Prefix i can be a prefix of j only if i's origin was a prefix of j's origin. Otherwise i would have grown into a
    prefix that already exists, and such prefixes are merged.
    """
    began = before.gather(1, origin[:, :, None].expand_as(before)).gather(2, origin[:, None].expand_as(before))
    place = (lengths - 1).clamp(min=0)[:, None].expand_as(before)
    agrees = (lengths == 0)[:, :, None] | (tokens.gather(2, place).transpose(1, 2) == last[:, :, None])
    shorter = lengths[:, :, None] <= lengths[:, None]
    return began & agrees & shorter & exists[:, :, None] & exists[:, None]


@dataclass(frozen=True)
class Graph:
    """The graphs of B sentences: links between vertices, and what vertices may emit, with log-probabilities.

    A path begins at the first vertex of a sentence and ends at its last one. A sentence of fewer than two vertices has a
    link from the first to itself, so that its output is empty and has probability 1.
    """

    links: Tensor  # [B, R, R], from axis 1 to axis 2; -inf: no link
    tokens: Tensor  # [B, R, k], the most probable tokens of each vertex, best first, all different
    log_probs: Tensor  # [B, R, k]; 0 at both ends, which emit bos and eos for certain
    inner: Tensor  # [B, R], vertices that emit one of their tokens: neither end, no padding
    last: Tensor  # [B], where paths end


def graph_of(links: Tensor, tokens: Tensor, log_probs: Tensor, real: Tensor) -> Graph:
    """The graphs of sentences whose `real` [B, R] vertices come first; for the other arguments see `Graph`."""
    vertex, last = torch.arange(real.shape[1], device=real.device), (real.sum(1) - 1).clamp(min=0)
    inner = (vertex > 0) & (vertex < last[:, None])
    links = links.masked_fill(~(real[:, :, None] & real[:, None]), -math.inf)
    links[:, 0, 0] = links[:, 0, 0].masked_fill(last == 0, 0.0)
    return Graph(links, tokens, log_probs.masked_fill(~inner[..., None], 0.0), inner, last)


def follow(graph: Graph, beta: float, length_beta: float, longest: int) -> Outputs:
    """Follows one link after the other: to the vertex with the largest log p(link) + beta log p(its best token).

    With beta 0 this is greedy search, else lookahead.

    Args:
      graph: of B sentences.
      beta: see above.
      length_beta: a score is the log-probability of path and tokens, divided by tokens ** length_beta, eos counted.
      longest: L, largest number of tokens of an output; longer outputs are cut.

    Returns:
      Tokens [B, 1, L], lengths [B, 1] and scores [B, 1] of the outputs. If a vertex on the way has no link, the output is
      empty and has -inf.
    """
    preferred = graph.links + beta * graph.log_probs[:, None, :, 0]
    sentence, at, path = torch.arange(len(graph.last), device=graph.last.device), torch.zeros_like(graph.last), []
    for _ in range(longest + 1):
        at = torch.where(at == graph.last, at, first_of_best(preferred[sentence, at]))
        path.append(at)
    path = torch.stack(path, dim=1)
    arrived = path == graph.last[:, None]
    return output_of_path(graph, path, (~arrived).sum(1).clamp(max=longest), length_beta)


def viterbi(graph: Graph, length_beta: float, longest: int) -> Outputs:
    """The best path with its best tokens, of all lengths (joint Viterbi: Shao et al. 2022, arXiv 2210.05193).

    For each number of tokens the search finds the most probable path. Of these it takes the one with the best score.

    Args:
      graph, length_beta: as in `follow`.
      longest: L; only paths of at most so many tokens count.

    Returns:
      As `follow`. If no path has at most L tokens, the output is empty and has -inf.
    """
    sentence, last = torch.arange(len(graph.last), device=graph.last.device), graph.last
    best = torch.full_like(graph.log_probs[..., 0], -math.inf)
    best[:, 0] = 0.0
    ends, origins = [], []
    for size in range(1, longest + 2):
        arriving, origin = (best[:, :, None] + graph.links).max(dim=1)
        best = arriving + graph.log_probs[..., 0]
        ends.append(best[sentence, last] / size**length_beta)
        origins.append(origin)
    lengths = first_of_best(torch.stack(ends, dim=1))
    at, path = last, []
    for number, origin in reversed(list(enumerate(origins))):
        path.append(at)
        at = torch.where(number > lengths, at, origin[sentence, at])
    return output_of_path(graph, torch.stack(path[::-1], dim=1), lengths, length_beta)


def output_of_path(graph: Graph, path: Tensor, lengths: Tensor, length_beta: float) -> Outputs:
    """The outputs of paths [B, L + 1] of vertices behind the first: so many tokens [B], then eos; for the result see
    `follow`."""
    place = torch.arange(path.shape[1], device=path.device)
    links = graph.links.take_along_dim(F.pad(path, (1, 0))[:, :-1, None], 1).take_along_dim(path[..., None], 2)[..., 0]
    scores = links + graph.log_probs[..., 0].gather(1, path)
    totals = scores.masked_fill(place > lengths[:, None], 0.0).sum(1)
    tokens = graph.tokens[..., 0].gather(1, path[:, :-1])
    lengths = lengths.masked_fill(totals == -math.inf, 0)
    return tokens[:, None], lengths[:, None], (totals / (lengths + 1.0) ** length_beta)[:, None]


def graph_beam_search(graph: Graph, beam: int, length_beta: float, longest: int) -> Outputs:
    """The best outputs, each with the probability of all its paths.

    A prefix keeps the probability of every vertex at which its paths may be, so that paths with equal tokens are one
    prefix. After each token the K most probable prefixes are kept.

    Args:
      graph: of B sentences.
      beam: K, number of prefixes and of outputs.
      length_beta: a score is the log-probability of the output, divided by tokens ** length_beta, eos counted.
      longest: L; only outputs of at most so many tokens count.

    Returns:
      Tokens [B, K, L], lengths [B, K] and scores [B, K] of the outputs, best first. If there are fewer than K outputs,
      the others are empty and have -inf.
    """
    none = -math.inf
    sentences, vertices, _ = graph.tokens.shape
    links, chances = graph.links.exp(), graph.log_probs.exp().masked_fill(~graph.inner[..., None], 0.0)
    kinds, token_of = different_tokens(graph.tokens)
    sentence = torch.arange(sentences, device=links.device)[:, None]
    tokens = graph.tokens.new_zeros(sentences, beam, max(longest, 1))
    log_probs = links.new_full((sentences, beam), none)
    log_probs[:, 0] = 0.0
    # Of the paths that begin with a prefix, the share that is at each vertex.
    spread = links.new_zeros(sentences, beam, vertices)
    spread[:, 0, 0] = 1.0
    done_tokens, done_lengths = tokens, graph.tokens.new_zeros(sentences, beam)
    done_scores = torch.full_like(log_probs, none)
    for size in range(longest + 1):
        arriving = spread @ links
        # Paths that end here.
        ended = log_probs + arriving.take_along_dim(graph.last[:, None, None], 2)[..., 0].log()
        scores = torch.cat([done_scores, ended / (size + 1) ** length_beta], dim=1)
        done_scores, kept = (x[:, :beam] for x in scores.sort(dim=1, descending=True, stable=True))
        done_tokens = torch.cat([done_tokens, tokens], dim=1)[sentence, kept]
        done_lengths = torch.cat([done_lengths, torch.full_like(done_lengths, size)], dim=1).gather(1, kept)
        # No output has more probability than its prefix, nor more tokens than L.
        if size == longest or not bool((log_probs.amax(1) / (longest + 1) ** length_beta > done_scores[:, -1]).any()):
            break

        # Paths that go on. Those that emit the same token at different vertices are one prefix.
        emitting = arriving[..., None] * chances[:, None]
        by_kind = torch.zeros_like(emitting.flatten(2))
        by_kind.scatter_add_(2, kinds.flatten(1)[:, None].expand_as(by_kind), emitting.flatten(2))
        grown = (log_probs[..., None] + by_kind.log()).flatten(1)
        log_probs, chosen = (x[:, :beam] for x in grown.sort(dim=1, descending=True, stable=True))
        origin, kind = chosen // by_kind.shape[2], chosen % by_kind.shape[2]
        tokens = tokens[sentence, origin]
        tokens[..., size] = token_of.gather(1, kind)
        spread = emitting[sentence, origin].masked_fill(kinds[:, None] != kind[..., None, None], 0.0).sum(3)
        total = spread.sum(2, keepdim=True)
        spread = spread / torch.where(total > 0, total, 1.0)
    return done_tokens, done_lengths.masked_fill(done_scores == none, 0), done_scores


def different_tokens(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers the different tokens of each sentence: tokens [B, R, k] -> their numbers [B, R, k], and the token [B, C]
    of each number (C = R * k; what no token has is 0)."""
    flat = tokens.flatten(1)
    ordered, order = flat.sort(dim=1)
    number = F.pad(ordered.diff(dim=1) != 0, (1, 0)).cumsum(1)
    numbers = torch.zeros_like(flat).scatter(1, order, number)
    return numbers.view_as(tokens), torch.zeros_like(flat).scatter(1, number, ordered)


def first_outputs(outputs: Outputs, count: int, config: JanusConfig) -> tuple[Tensor, Tensor]:
    """The first `count` outputs of each sentence: ids [B * count, T] with bos and eos, and scores [B * count]."""
    tokens, lengths, scores = (x[:, :count].flatten(0, 1) for x in outputs)
    return framed(tokens, lengths, config), scores


def framed(tokens: Tensor, lengths: Tensor, config: JanusConfig) -> Tensor:
    """Puts bos and eos around the first `lengths` [N] of tokens [N, L]; returns ids [N, T], padded."""
    slot = torch.arange(int(lengths.max()), device=tokens.device)
    inner = torch.where(slot < lengths[:, None], tokens[:, : len(slot)], config.pad_token_id)
    whole = F.pad(F.pad(inner, (1, 0), value=config.bos_token_id), (0, 1), value=config.pad_token_id)
    return whole.scatter(1, lengths[:, None] + 1, config.eos_token_id)
