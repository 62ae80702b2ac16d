"""Every setting, with its default: frozen dataclasses, one a group; `config.py` fills and checks them.

A loss weight is a number, or a schedule of the training step: a tuple of (step, value) points, linear in between and
constant outside.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Range:
    """The values that a number may have; None: no bound on that side."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        named = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{words} {bound:g}" for words, bound in named if bound is not None)


def setting(default: Any, help: str, *, unit: str = "", **bounds: float) -> Any:
    """A field of a settings dataclass, described where it is defined.

    `--help`, the checks and docs/configuration.md are made from this description.

    Args:
      default: of the field.
      help: what the setting does, one plain sentence or two.
      unit: of a number, for example "tokens", "steps" or "rows per source token".
      bounds: of `Range`: at_least, above, at_most, below.
    """
    return field(default=default, metadata={"help": help, "unit": unit, "range": Range(**bounds)})


Weight = float | tuple[tuple[int, float], ...]

Source = Literal["parallel", "tsv", "tfds", "demo", "text"]
MaskSampler = Literal["span", "uniform"]
Objective = Literal["ar", "cmlm", "janus", "ctc", "janus_ctc"]
Optimizer = Literal["adam", "adamw"]
Schedule = Literal["inverse_sqrt", "polynomial", "cosine", "constant"]
Mode = Literal["ar", "nar", "ctc", "speculative", "infill"]
Remat = Literal["none", "full", "dots"]


@dataclass(frozen=True)
class TextConfig:
    """Tokenizer: one vocabulary for both languages, since one embedding matrix serves both."""

    # A given tokenizer: a SentencePiece model, a tokenizer.json, a folder with vocab.json and merges.txt (BART), a fairseq
    # dict.txt (of text that is tokenized already); empty: that of init_from, or one trained on the training split.
    model: str = ""
    model_type: Literal["unigram", "bpe", "byte_bpe"] = "unigram"  # SentencePiece, SentencePiece, byte-level as in BART
    vocab_size: int = 8000  # of a tokenizer to be trained, the five special ids included
    character_coverage: float = 0.9995
    byte_fallback: bool = True  # characters outside the vocabulary become bytes, so that nothing is unknown
    train_lines: int = 1_000_000  # at most so many lines train the tokenizer, evenly spread over the split


@dataclass(frozen=True)
class DataConfig:
    """Where the text is, what is kept of it, and how it is batched and masked."""

    source: Source = "demo"
    source_lang: str = "de"
    target_lang: str = "en"
    # parallel: path prefixes ("data/train" reads data/train.de and data/train.en, or .gz, .xz); tsv: files;
    # tfds: split names; demo: ignored; text: files or a pattern ("corpus/*.txt.xz"), a document a line. An empty string
    # means that the split is absent.
    train: str = "train"
    valid: str = "validation"
    test: str = "test"
    hold_out: int = 0  # text: without a valid split, every n-th document is kept out of training to be one; 0: none
    tfds_name: str = ""  # any TFDS translation dataset, "name/config:version"
    tfds_data_dir: str = ""
    demo_sizes: tuple[int, int, int] = (60_000, 500, 500)  # train, valid, test pairs of the built-in corpus
    prepared: str = "prepared/demo"  # directory that `python -m janus_jax.data` writes and training reads
    max_source_length: int = 256  # tokens, bos and eos counted; longer pairs are dropped and reported
    max_target_length: int = 256
    max_length_ratio: float = 0.0  # longer side / shorter side in tokens; 0: no limit
    # batching
    tokens_per_batch: int = 4096  # rows * max(S, T) of a micro-batch never exceeds it
    batch_multiple: int = 8  # rows are a multiple of it, whatever the mesh
    buckets: int | tuple[int, ...] = 4  # how many (S, T) shapes, chosen to waste least; or upper bounds of max(S, T)
    seed: int = 0
    workers: int = 1  # threads that prepare batches ahead
    # masking of the target (METHOD section 4)
    mask_sampler: MaskSampler = "span"
    mask_ratio: float = 0.7  # span: share of T that the spans sum to, before overlaps
    mask_span: float = 2.0  # span: mean length (Poisson)
    mask_suffix: float = 0.0  # share of targets of which a whole suffix is masked instead, as speculation drafts it
    # source "text": denoising (METHOD section 6); blocks are max_target_length tokens long
    noise_ratio: float = 0.3  # share of the words that the spans sum to
    noise_span: float = 3.0  # mean length of a span in words (Poisson)
    noise_hidden: float = 0.5  # share of the spans that the source does not show; the others stay in it
    rotate: float = 0.0  # share of the sources that begin at a random token instead (0.5 in the released recipe)
    permute_sentences: float = 0.0  # share of the sources whose sentences are put in random order


@dataclass(frozen=True)
class ModelConfig:
    """Architecture. Defaults: the released IWSLT14 model with our fixed behaviour."""

    vocab_size: int = 0  # 0: taken from the tokenizer
    d_model: int = 512
    ffn_dim: int = 1024
    heads: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    max_positions: int = 1024  # rows of each learned position table, without the two reserved ones
    norm: Literal["post", "pre"] = "post"
    activation: Literal["relu", "gelu"] = "relu"  # gelu: exact (erf)
    scale_embedding: bool = True  # multiply token embeddings by sqrt(d_model)
    layernorm_embedding: bool = False  # BART: normalise token + position before dropout
    nar_layernorm_embedding: bool = True  # False: released pretraining code, which forgets it on NAR and AUX rows
    dropout: float = 0.3
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    ar_stream: Literal["query", "content"] = "query"
    ar_slot_position: Literal["target", "input"] = "target"
    ar_start: Literal["bos", "eos"] = "bos"  # eos: BART's shift, T slots, bos is a target too
    mask_token: Literal["mask", "unk"] = (
        "mask"  # what stands for a masked target token; unk in the released checkpoints
    )
    length_classes: int = 256
    ctc_ratio: float = 0.0  # rows of the CTC decoder a source token (2 is usual); 0: a model without blank and CTC rows
    ctc_input: Literal["mask", "source"] = "mask"  # what CTC rows read: the mask token, or evenly copied source tokens
    vocab_multiple: int = 128  # the vocabulary is padded to a multiple, so that it splits over a mesh
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto: bfloat16 on accelerators
    remat: Remat = "none"  # what the backward pass computes anew: nothing, every layer, all but its matrix products
    attention: Literal["plain", "fused"] = "plain"  # fused: jax.nn.dot_product_attention, cuDNN's kernel on GPUs

    def ctc_slots(self, source_length: int) -> int:
        """R, the CTC rows of a source of so many tokens, bos and eos counted: ceil(ctc_ratio * tokens)."""
        # Rounded first: 1.1 * 10 is 11.000000000000002 in floats.
        return math.ceil(round(self.ctc_ratio * source_length, 6))


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term of the loss (METHOD section 5): a number or (step, value) points."""

    ar: Weight = 1.0
    nar: Weight = 0.5
    aux: Weight = 0.5
    length: Weight = 0.1
    kl_ar_nar: Weight = 1.0
    kl_nar_aux: Weight = 1.0
    kl_ar_aux: Weight = 3.0
    ctc: Weight = 1.0  # objectives ctc and janus_ctc
    kl_ar_ctc: Weight = 1.0  # of each target token, at the CTC row that gives it most confidently


@dataclass(frozen=True)
class StopGradients:
    """Which side of each symmetric KL is held fixed (teaches, is not taught)."""

    kl_ar_nar: Literal["none", "ar", "nar"] = "none"
    kl_nar_aux: Literal["none", "nar", "aux"] = "none"
    kl_ar_aux: Literal["none", "ar", "aux"] = "none"
    kl_ar_ctc: Literal["none", "ar", "ctc"] = "none"


@dataclass(frozen=True)
class ObjectiveConfig:
    """The training loss. Of the weights `ar` reads ar; `cmlm` nar and length; `janus` these, aux and the divergences between
    the three; `ctc` reads ctc; `janus_ctc` ar, ctc and kl_ar_ctc.
    """

    name: Objective = "janus"
    label_smoothing: float = 0.1
    weights: LossWeights = field(default_factory=LossWeights)
    stop_gradient: StopGradients = field(default_factory=StopGradients)
    # Share of the steps in which AR alone is trained; the other weights then rise within a quarter as many steps.
    ar_first: float = 0.0
    glancing: Weight = 0.0  # CTC rows that are shown their token in training, for each wrong one (GLAT); 0: none
    ctc_floor: float = 0.01  # kl_ar_ctc leaves out rows that give less than this to all tokens together
    encoder_passes: Literal[1, 2] = 1  # 2: released code, AR and NAR rows see independently dropped-out encoders
    normalize_by: Literal["rows", "target"] = "rows"  # target: divide all sums by the target tokens (pretraining)
    projection_rows: int = (
        0  # about so many rows' logits live at once on each device in training; 0: the whole micro-batch's
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: Optimizer = "adamw"
    learning_rate: float = 5e-4  # peak
    schedule: Schedule = "inverse_sqrt"
    warmup_steps: int = 10_000
    warmup_init: float = 1e-7
    end_learning_rate: float = 0.0  # polynomial, cosine: value at the last step
    power: float = 1.0  # polynomial
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 1e-4  # decoupled (adamw)
    decay_all: bool = True  # False: no decay on biases and layer-norm gains
    clip_norm: float = 0.0  # global gradient norm; 0: off
    ema_decay: float = 0.0  # exponential moving average of parameters, used for evaluation; 0: off


@dataclass(frozen=True)
class TrainConfig:
    """The training run."""

    steps: int = 200_000
    accumulation: int = 1  # micro-batches per step
    seed: int = 0
    log_every: int = 100
    eval_every: int = 2000  # dev loss and dev decoding
    eval_sentences: int = 200  # of the validation split are decoded at each evaluation; 0: none
    checkpoint_every: int = 2000
    keep_last: int = 3
    keep_best: int = 1
    keep_every: int = 0  # checkpoints of steps that are multiples of it are kept for good; 0: none
    best_metric: str = "valid/loss"
    best_mode: Literal["min", "max"] = "min"
    max_bad_steps: int = 0  # non-finite steps tolerated (skipped) before the run stops
    spike: float = 8.0  # standard deviations above the mean of the steps before at which a loss is reported; 0: never
    deterministic: bool = False  # GPU: only operations whose results don't vary from run to run; slower


@dataclass(frozen=True)
class ArDecode:
    """Mode ar: beam search, greedy search or sampling."""

    beam: int = setting(5, "Hypotheses a sentence; 1 is greedy search.", at_least=1)
    lenpen: float = setting(
        1.0,
        "Length penalty: a score is the sum of the log-probabilities divided by the number of tokens to this power.",
        at_least=0,
    )
    stop: Literal["best", "current", "released"] = setting(
        "best",
        "When beam search is done with a sentence: no live hypothesis can still (best) or would now (current) beat the "
        "finished ones, or as soon as there are enough finished ones (released).",
    )
    max_length_a: float = setting(
        1.5, "An output has at most max_length_a * source tokens + max_length_b tokens.", at_least=0
    )
    max_length_b: int = setting(20, "See max_length_a.", unit="tokens", at_least=0)
    min_length: int = setting(1, "An output has at least so many tokens.", unit="tokens", at_least=0)
    no_repeat_ngram: int = setting(
        0, "No n-gram of this size occurs twice in an output; 0: off. Not possible in mode speculative.", at_least=0
    )
    sample: bool = setting(False, "Draw tokens at random instead of searching. Not possible in mode speculative.")
    temperature: float = setting(1.0, "Sampling: divides the logits.", above=0)
    top_k: int = setting(0, "Sampling: only the k likeliest tokens; 0: all.", at_least=0)
    top_p: float = setting(
        1.0, "Sampling: only the likeliest tokens that together have this probability.", above=0, at_most=1
    )
    seed: int = setting(0, "Sampling: another seed draws other tokens.", at_least=0)

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """The field that bounds nbest and its value; None: nothing does."""
        return None if self.sample else ("beam", self.beam)


@dataclass(frozen=True)
class NarDecode:
    """Mode nar: mask-predict."""

    passes: int = setting(10, "Decoder passes (the released iteration n is n + 1 passes).", at_least=1)
    length_beam: int = setting(3, "Target lengths that are tried for a sentence.", at_least=1)
    lengths: Literal["top", "contiguous"] = setting(
        "top", "Which lengths are tried: the most probable ones, or those around the most probable one."
    )
    mask_schedule: Literal["linear", "cosine"] = setting("linear", "How many tokens are masked again after a pass.")
    early_stop: bool = setting(False, "Stop as soon as a pass changes nothing.")
    merge_repeats: bool = setting(False, "Drop a token that equals the one before it.")
    rerank: Literal["none", "ar"] = setting("none", "ar: the AR half chooses among the length candidates.")

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """The field that bounds nbest and its value."""
        return "length_beam", self.length_beam


@dataclass(frozen=True)
class CtcDecode:
    """Mode ctc: one pass, then the best path or a prefix beam search."""

    beam: int = setting(5, "Prefixes a sentence; 1 is the best path.", at_least=1)
    tokens: int = setting(16, "So many of a row's likeliest tokens enter the prefix beam search.", at_least=1)
    blank_penalty: float = setting(
        0.0, "Subtracted from the blank's log-probability in every row, against outputs that are too short.", at_least=0
    )
    rerank: Literal["none", "ar"] = setting("none", "ar: the AR half chooses among the outputs of the beam.")

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """The field that bounds nbest and its value."""
        return "beam", self.beam


Draft = Literal["auto", "always", "never"]
_DRAFT = "When drafts are made: where they save time on this machine (auto), always, or never."
_DRAFT_PASSES = "Passes of mask-predict that make a draft."
_ACCEPT_TOP = (
    "A drafted token is accepted among so many best ones; above 1 outputs depend on the drafts (not lossless)."
)
_ACCEPT_GAP = "... and only if its log-probability is at most so much below the best one's; above 0: not lossless."


@dataclass(frozen=True)
class SpeculativeDecode:
    """Mode speculative: greedy search under config.decode.ar in fewer passes, by drafts that the AR half verifies."""

    draft: Draft = setting("auto", _DRAFT)
    draft_from: Literal["auto", "nar", "ctc"] = setting(
        "auto", "The half of the model that makes the drafts; auto: CTC where the model was trained for it."
    )
    draft_passes: int = setting(1, _DRAFT_PASSES, at_least=1)
    draft_lengths: int = setting(1, "Drafts of so many lengths are verified side by side.", at_least=1)
    accept_top: int = setting(1, _ACCEPT_TOP, at_least=1)
    accept_gap: float = setting(0.0, _ACCEPT_GAP, at_least=0)

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """No field bounds nbest: a sentence has one output."""
        return "", 1


@dataclass(frozen=True)
class InfillDecode:
    """Mode infill: the gaps of a given target, left to right by the AUX rows, drafted by the NAR rows."""

    draft: Draft = setting("auto", _DRAFT)
    draft_passes: int = setting(1, _DRAFT_PASSES, at_least=1)
    accept_top: int = setting(1, _ACCEPT_TOP, at_least=1)
    accept_gap: float = setting(0.0, _ACCEPT_GAP, at_least=0)

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """No field bounds nbest: a sentence has one output."""
        return "", 1


ModeSettings = ArDecode | NarDecode | CtcDecode | SpeculativeDecode | InfillDecode


@dataclass(frozen=True)
class DecodeConfig:
    """How sentences are decoded: what all modes share, and the settings of each mode in a group of its own."""

    mode: Mode = setting(
        "ar",
        "ar: beam search, greedy search or sampling. nar: mask-predict. ctc: one pass, best path or prefix beam search. "
        "speculative: greedy search's output in fewer passes. infill: the gaps of a given target.",
    )
    nbest: int = setting(1, "Outputs a sentence: of the beam, of the length candidates, or samples.", at_least=1)
    rules: Literal["default", "released"] = setting(
        "default", "released: every rule of the released decoders, their faults included."
    )
    batch_tokens: int = setting(
        4096, "Sentences * hypotheses * padded length of a batch stay below it.", unit="tokens", at_least=1
    )
    ar: ArDecode = field(default_factory=ArDecode)
    nar: NarDecode = field(default_factory=NarDecode)
    ctc: CtcDecode = field(default_factory=CtcDecode)
    speculative: SpeculativeDecode = field(default_factory=SpeculativeDecode)
    infill: InfillDecode = field(default_factory=InfillDecode)

    @property
    def chosen(self) -> ModeSettings:
        """The settings of the chosen mode."""
        return getattr(self, self.mode)


@dataclass(frozen=True)
class ParallelConfig:
    """Mesh axes; one of them may be -1: all remaining devices."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Config:
    """One experiment."""

    init_from: str = ""  # a checkpoint whose parameters and tokenizer the run starts from (training or import)
    text: TextConfig = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
