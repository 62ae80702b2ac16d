"""The modes of decoding: each binds a search to the model. `MODES` is the only place that knows them all.

A new mode needs a module here with a function `run`, an entry in `MODES`, and its settings in `settings.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from janus_jax import config
from janus_jax.config import DecodeConfig
from janus_jax.decode.modes import ar, ctc, dag, infill, nar, speculative
from janus_jax.decode.modes.autoregression import ar_hypotheses
from janus_jax.decode.types import DecodePlan, DecodeRequest, DecodeResult
from janus_jax.objective.terms import term


@dataclass(frozen=True)
class Mode:
    """One mode of decoding.

    Raises:
      ValueError: `needs` names a loss term that is not in objective/terms.py.
    """

    run: Callable[[DecodeRequest], DecodeResult]
    settings: type  # its dataclass; the field of `DecodeConfig` has the mode's name
    needs: tuple[frozenset[str], ...]  # sets of loss terms; all terms of one set must have been trained
    rows: Callable[[DecodeConfig], int]  # decoder rows of a sentence relative to its length, for the size of a batch
    # Settings of other modes that it reads: mode -> fields.
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Settings that have no effect unless another has this value.
    only_with: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    released: bool = False  # whether `rules="released"` changes its search
    inputs: frozenset[str] = frozenset()  # what it takes beside the sources: "prefixes", "targets", "infills"
    required: frozenset[str] = frozenset()  # those of `inputs` that it cannot do without
    traces: bool = False  # whether it can record the tokens of each pass
    check: Callable[[DecodePlan], None] | None = None  # raises ValueError if the model cannot decode this
    validation: Mapping[str, Any] | None = None  # settings that score the mode during training; None: not scored
    trials: tuple[Mapping[str, Any], ...] = ()  # settings that `janus_jax.evaluate` compares by default

    def __post_init__(self) -> None:
        for name in frozenset().union(*self.needs):
            term(name)


MODES: dict[str, Mode] = {
    "ar": Mode(
        ar.run,
        config.ArDecode,
        needs=(frozenset({"ar"}),),
        rows=lambda decode: ar_hypotheses(decode.ar, decode.nbest),
        only_with=dict.fromkeys(("temperature", "top_k", "top_p", "seed"), ("sample", True))
        | {"beam": ("sample", False), "stop": ("rules", "default")},
        released=True,
        inputs=frozenset({"prefixes"}),
        validation={"beam": 1},
        trials=({"beam": 1}, {"beam": 5}),
    ),
    "nar": Mode(
        nar.run,
        config.NarDecode,
        needs=(frozenset({"nar", "length"}),),
        rows=lambda decode: decode.nar.length_beam,
        reads={"ar": ("lenpen",)},  # of reranking
        only_with={"lenpen": ("rerank", "ar"), "lengths": ("rules", "default")},
        released=True,
        inputs=frozenset({"targets"}),
        traces=True,
        check=nar.check,
        validation={},
        trials=({"passes": 1}, {"passes": 4}, {"passes": 10}),
    ),
    "ctc": Mode(
        ctc.run,
        config.CtcDecode,
        needs=(frozenset({"ctc"}),),
        # Without reranking one pass of the rows, of which there are usually two a source token.
        rows=lambda decode: decode.ctc.beam if decode.ctc.rerank == "ar" else 2,
        reads={"ar": ("lenpen",)},  # of reranking
        only_with={"lenpen": ("rerank", "ar")},
        check=ctc.check,
        validation={"beam": 1},
        trials=({"beam": 1}, {"beam": 5}),
    ),
    "dag": Mode(
        dag.run,
        config.DagDecode,
        needs=(frozenset({"dag"}),),
        # Without reranking one pass of the rows, of which there are at most eight a source token in published models.
        rows=lambda decode: max(8, decode.dag.beam if decode.dag.rerank == "ar" else 1),
        reads={"ar": ("lenpen",)},  # of reranking
        only_with={
            "lenpen": ("rerank", "ar"),
            "beta": ("search", "lookahead"),
            "beam": ("search", "beam"),
            "tokens": ("search", "beam"),
        },
        check=dag.check,
        validation={"search": "lookahead"},
        trials=({"search": "greedy"}, {"search": "lookahead"}, {"search": "viterbi"}, {"search": "beam"}),
    ),
    "speculative": Mode(
        speculative.run,
        config.SpeculativeDecode,
        needs=(
            frozenset({"ar", "nar", "length"}),
            frozenset({"ar", "ctc"}),
            frozenset({"ar", "dag"}),
            frozenset({"ar", "heads"}),
        ),
        rows=lambda decode: decode.speculative.draft_lengths,
        reads={
            # The output is that of greedy search, or of sampling: its limits and its score are those of mode ar.
            "ar": (*speculative.AR_SETTINGS, "no_repeat_ngram"),
            "nar": ("lengths", "mask_schedule", "early_stop", "revise"),  # of drafts by the NAR half
            "ctc": ("blank_penalty",),  # of drafts by the CTC half
        },
        only_with=dict.fromkeys(("temperature", "top_k", "top_p", "seed"), ("sample", True))
        | {"lengths": ("rules", "default")},
        released=True,
        traces=True,
        check=speculative.check,
    ),
    "infill": Mode(
        infill.run,
        config.InfillDecode,
        needs=(frozenset({"nar", "aux"}),),
        rows=lambda decode: 1,
        reads={"nar": ("mask_schedule", "early_stop", "revise")},  # of drafts
        inputs=frozenset({"targets", "infills"}),
        required=frozenset({"targets"}),
    ),
}


def trained_modes(run: config.Config) -> tuple[str, ...]:
    """The modes whose rows the model of a run has learnt."""
    terms = config.trained_terms(run)
    return tuple(name for name, mode in MODES.items() if any(needed <= terms for needed in mode.needs))
