"""Makes another program's tensors fit a janus_jax model and a tokenizer, by the rules that `importing` lists."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from janus_jax.config import ModelConfig
from janus_jax.convert.errors import ConvertError
from janus_jax.convert.fairseq import COPIES, LENGTHS, SHARED, check_matrices, count_layers, released_shapes
from janus_jax.convert.report import Report
from janus_jax.text import Tokenizer
from janus_jax.types import Specials

_HARMLESS = {
    r"(encoder|decoder)\.version": "the version of a file format",
    r"(encoder|decoder)\.embed_positions\._float_tensor": "left over from sinusoidal positions",
    r"classification_heads?\..*": "the head of a classifier",
}
_COPY_NAMES = (*COPIES, "shared.weight", "lm_head.weight")
_TABLES = tuple(f"{side}.embed_positions.weight" for side in ("encoder", "decoder"))
_SPARE_ROWS = 128  # a table may have this many rows, or a tenth of its rows, beyond the tokenizer's vocabulary
_SEED = 0


@dataclass(frozen=True)
class FitOptions:
    """Choices of the user, and what the source of the model requires."""

    ignore: str = ""  # pattern of tensor names to leave out
    max_positions: int = 0  # 0: all
    mask_is_last: bool = False  # fairseq's BART: the mask's row is the last one, after the fillers


def fit(
    arrays: Mapping[str, np.ndarray], model: ModelConfig, tokenizer: Tokenizer, options: FitOptions, report: Report
) -> tuple[dict[str, np.ndarray], ModelConfig]:
    """Arrays with exactly the names and shapes of a model that fits the tokenizer, and that model.

    Raises:
      ConvertError: a tensor is missing, unknown or of a wrong shape, the output is not tied to the embedding, or the
        tokenizer does not fit.
    """
    arrays = without_harmless(arrays, options.ignore, report)
    check_numbers(arrays)
    drop_copies(arrays, report)
    check_matrices(arrays, (SHARED, *_TABLES))
    model = _positions(arrays, model, options.max_positions, report)
    model = _vocabulary(arrays, model, tokenizer, options.mask_is_last, report)
    new_length_head = LENGTHS not in arrays
    if new_length_head:
        model = _length_head(arrays, model, report)
    check_shapes(arrays, model, tokenizer.specials)
    report.used += [name for name in arrays if not (new_length_head and name == LENGTHS)]
    return arrays, model


def check_shapes(arrays: Mapping[str, np.ndarray], model: ModelConfig, specials: Specials) -> None:
    """Raises ConvertError unless `arrays` has exactly the model's tensors in their shapes."""
    _check_sizes(arrays, model)
    expected = released_shapes(model, specials)
    for name, shape in expected.items():
        if name not in arrays:
            raise ConvertError(f"{name} is missing (expected shape {shape}): truncated or foreign checkpoint")
        if arrays[name].shape != shape:
            raise ConvertError(
                f"{name} has shape {arrays[name].shape}, expected {shape}: truncated or foreign checkpoint"
            )
    if unknown := [name for name in arrays if name not in expected]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ConvertError(
            f"{unknown[0]}{more}: this architecture has no such tensor; leave it out with --ignore=REGEX if it does not matter"
        )


def _check_sizes(arrays: Mapping[str, np.ndarray], model: ModelConfig) -> None:
    """Compares the settings with the arrays first: the shapes of a model of absurd sizes would take forever."""
    check_matrices(arrays, (SHARED,))
    for side, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        if layers > (held := count_layers(arrays, side)):
            raise ConvertError(
                f"{side}.layers.{held}.* is missing: the settings say {layers} layers, the file holds {held}: "
                "truncated or foreign checkpoint"
            )
        if layers < held:
            raise ConvertError(
                f"{side}_layers is {layers}, but the file holds {held} layers: foreign checkpoint; leave layers out with "
                "--ignore=REGEX if they do not matter"
            )
    width = arrays[SHARED].shape[1]
    if model.d_model != width:
        raise ConvertError(
            f"d_model is {model.d_model}, but {SHARED} has {width} columns: truncated or foreign checkpoint"
        )


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ConvertError unless all arrays hold finite floating-point numbers."""
    for name, value in arrays.items():
        if value.dtype != np.float32:
            raise ConvertError(
                f"{name} holds numbers of type {value.dtype}: weights are floating-point numbers; save the model without "
                "quantisation, or leave the tensor out with --ignore=REGEX if it does not matter"
            )
        if not np.isfinite(value).all():
            count = int((~np.isfinite(value)).sum())
            raise ConvertError(
                f"{name} holds {count} numbers that are NaN or infinite (as float32): the file is damaged, or its training "
                "diverged; take another copy or an earlier checkpoint"
            )


def without_harmless(arrays: Mapping[str, np.ndarray], ignore: str, report: Report) -> dict[str, np.ndarray]:
    """`arrays` without tensors that are known not to matter, and without those that match `ignore`."""
    reasons = {f"^{pattern}$": why for pattern, why in _HARMLESS.items()}
    if ignore:
        reasons[ignore] = f"matches --ignore={ignore}"
    kept = {}
    for name, value in arrays.items():
        reason = next((why for pattern, why in reasons.items() if re.search(pattern, name)), None)
        if reason is None:
            kept[name] = value
        else:
            report.ignored.append((name, reason))
    return kept


def drop_copies(arrays: dict[str, np.ndarray], report: Report) -> None:
    """Removes the embedding's copies from `arrays`; raises ConvertError if one differs from it."""
    for name in _COPY_NAMES:
        if name in arrays and SHARED in arrays:
            if not np.array_equal(arrays.pop(name), arrays[SHARED]):
                raise ConvertError(
                    f"{name} differs from {SHARED}: untied embeddings and outputs are not supported, since a janus_jax model "
                    "has one shared matrix"
                )
            report.ignored.append((name, f"equal to {SHARED}"))


def _positions(arrays: dict[str, np.ndarray], model: ModelConfig, max_positions: int, report: Report) -> ModelConfig:
    """Cuts both position tables to one length."""
    available = min(len(arrays[name]) for name in _TABLES) - 2
    if available < 1:
        raise ConvertError(
            f"{min(_TABLES, key=lambda name: len(arrays[name]))} has {available + 2} rows, and the first two are no positions: "
            "truncated or foreign checkpoint"
        )
    if max_positions > available:
        raise ConvertError(
            f"--max_positions={max_positions}: the position tables hold {available} positions; choose {available} or fewer"
        )
    positions = max_positions or available
    for name in _TABLES:
        if len(arrays[name]) > positions + 2:
            report.ignored.append(
                (f"{name} rows {positions + 2} to {len(arrays[name]) - 1}", "beyond the positions that are kept")
            )
            arrays[name] = arrays[name][: positions + 2]
    return replace(model, max_positions=positions)


def _vocabulary(
    arrays: dict[str, np.ndarray], model: ModelConfig, tokenizer: Tokenizer, mask_is_last: bool, report: Report
) -> ModelConfig:
    """Gives the embedding one row for each of the tokenizer's ids."""
    table, size = arrays[SHARED], tokenizer.vocab_size
    extra = len(table) - size
    mask_ends = tokenizer.specials.mask == size - 1
    if extra == -1 and mask_ends:
        # The logit of the mean row is the mean logit: it is never the largest, and takes at most 1/V of the
        # probability.
        arrays[SHARED] = np.concatenate([table, table.mean(0, keepdims=True)])
        report.created.append((f"{SHARED} row {size - 1}", "for <mask>: the mean of all rows"))
    elif extra < 0 or extra > max(_SPARE_ROWS, len(table) // 10):
        raise ConvertError(
            f"tokenizer does not fit: it has {size} tokens, but {SHARED} has {len(table)} rows; give the model's tokenizer with --tokenizer"
        )
    elif extra:
        arrays[SHARED] = table[:size]
        report.ignored.append((f"{SHARED} rows {size} to {len(table) - 1}", f"the tokenizer has {size} tokens"))
        if mask_is_last and mask_ends:
            arrays[SHARED] = np.concatenate([table[: size - 1], table[-1:]])
            report.notes.append(
                f"{SHARED}: row {len(table) - 1} is <mask> in fairseq's BART, and moved to row {size - 1}, the tokenizer's id of <mask>"
            )
    return replace(model, vocab_size=size)


def _length_head(arrays: dict[str, np.ndarray], model: ModelConfig, report: Report) -> ModelConfig:
    classes = min(model.max_positions, 1024)
    shape = (classes, model.d_model)
    arrays[LENGTHS] = np.random.default_rng(_SEED).normal(0.0, 0.02, shape).astype(np.float32)
    report.created.append(
        (LENGTHS, f"{classes} classes, N(0, 0.02) from seed {_SEED}: train it before decoding mode nar")
    )
    return replace(model, length_classes=classes)
