"""The cells of benchmarks/study.py: the preset of each, its changes to it, and its purpose."""

from dataclasses import dataclass, field
from typing import Any

from janus_jax.data import Readers


@dataclass(frozen=True)
class Cell:
    """One training run of the study.

    Attributes:
      why: its purpose.
      changes: settings that differ from the preset.
      preset: of configs/multi30k_deen.py.
      start: the cell whose model the run starts from; "": none. It is trained first.
      distilled_by: the cell whose model made the targets of the `readers`; "": they are raw.
      distilled_with: the decoding setting that made them.
      readers: the rows that read these targets, see `data.retarget`.
    """

    why: str
    changes: dict[str, Any] = field(default_factory=dict)
    preset: str = "study"
    start: str = ""
    distilled_by: str = ""
    distilled_with: str = "ar:beam=5"
    readers: Readers = "parallel"


_TEACHER = {"objective.stop_gradient.kl_ar_nar": "ar", "objective.stop_gradient.kl_ar_aux": "ar"}
_JANUS = {"objective.name": "janus"}


def _late(begin: int, **weights: float) -> dict[str, Any]:
    """Weights that are zero before step `begin` and rise to their values within 100 steps."""
    return {f"objective.weights.{name}": ((begin, 0.0), (begin + 100, value)) for name, value in weights.items()}


_OTHERS = {"nar": 0.5, "aux": 0.5, "length": 0.1, "kl_ar_nar": 1.0, "kl_nar_aux": 1.0, "kl_ar_aux": 3.0}
_NO_KL = {"nar": 0.5, "aux": 0.5, "length": 0.1}
_KL_OFF = {f"objective.weights.{name}": 0.0 for name in ("kl_ar_nar", "kl_nar_aux", "kl_ar_aux")}
_CONTENT_AR10 = {"model.ar_stream": "content", "objective.weights.ar": 10.0}

_CTC = {"model.ctc_ratio": 2.0}
_JOINT_CTC = _CTC | {"objective.name": "janus_ctc"}

_NO_PENALTY = {"decode.ctc.blank_penalty": 0.0}  # the decoding settings of the cells name theirs
_SECOND_AR = {"objective.name": "ar", "objective.ar_every": 1, "model.ctc_ratio": 0.0}
_CORRECTION = {"objective.nar_correction": ((0, 0.0), (1000, 0.3)), "decode.nar.revise": True}
_UNTAUGHT = {"objective.weights.kl_ar_nar": 0.0, "objective.stop_gradient.kl_ar_nar": "none"}
_FROZEN = {
    "objective.weights.ar": 0.0,
    "objective.ar_every": 1,
    "model.parallel_adapter_rank": 32,
    "train.only": "adapter|embed_ctc_positions|embed_tokens/blank",
}

CELLS = {
    # The objectives, at equal updates.
    "ar": Cell("baseline: AR alone", {"objective.name": "ar"}),
    "ar_content": Cell("AR alone, one stream of rows", {"objective.name": "ar", "model.ar_stream": "content"}),
    "ar_content_2350": Cell(
        "AR alone, one stream, for as long as the recipe's 1200 steps take (step_seconds.json)",
        {"objective.name": "ar", "model.ar_stream": "content", "train.steps": 2350},
    ),
    "cmlm": Cell("baseline: NAR alone", {"objective.name": "cmlm", "objective.weights.nar": 1.0}),
    "janus": Cell("the joint loss with the released weights", _JANUS),
    "ctc": Cell("baseline: CTC alone", _CTC | {"objective.name": "ctc"}),
    "janus_ctc": Cell("AR and CTC from the first step, with the divergence between them", _JOINT_CTC),
    # The search for a recipe: AR first, AR as the teacher, one AR stream, AR's weight.
    "janus_late_teacher_content_ar10": Cell(
        "AR alone for 400 steps, then the joint loss; AR teaches and isn't taught; one AR stream; AR's weight is 10",
        _JANUS | _TEACHER | _late(400, **_OTHERS) | _CONTENT_AR10,
    ),
    "janus_late_teacher_content_ar3": Cell(
        "the same, AR's weight is 3",
        _JANUS | _TEACHER | _late(400, **_OTHERS) | _CONTENT_AR10 | {"objective.weights.ar": 3.0},
    ),
    "janus_late_teacher_content": Cell(
        "the same, AR's weight is 1",
        _JANUS | _TEACHER | _late(400, **_OTHERS) | {"model.ar_stream": "content"},
    ),
    "janus_teacher_content_ar10": Cell("weight 10, joint from the first step", _JANUS | _TEACHER | _CONTENT_AR10),
    "janus_late_content_ar10": Cell(
        "weight 10, AR is taught too (nothing is fixed)", _JANUS | _late(400, **_OTHERS) | _CONTENT_AR10
    ),
    "janus_late_teacher_ar10": Cell(
        "weight 10, two AR streams", _JANUS | _TEACHER | _late(400, **_OTHERS) | {"objective.weights.ar": 10.0}
    ),
    "janus_late_content_ar10_no_kl": Cell(
        "weight 10, no divergences", _JANUS | _late(400, **_NO_KL) | _KL_OFF | _CONTENT_AR10
    ),
    "ctc_late_teacher_content_ar10": Cell(
        "AR alone for 400 steps, then AR and CTC; AR teaches and isn't taught; one AR stream; AR's weight is 10",
        _JOINT_CTC | _late(400, ctc=1.0, kl_ar_ctc=1.0) | _CONTENT_AR10 | {"objective.stop_gradient.kl_ar_ctc": "ar"},
    ),
    "ctc_late_content_ar10_no_kl": Cell(
        "the same without divergence",
        _JOINT_CTC | _late(400, ctc=1.0) | _CONTENT_AR10 | {"objective.weights.kl_ar_ctc": 0.0},
    ),
    # Long runs at the size of multi30k_deen.py:cpu.
    "cpu_ar": Cell("AR alone: the teacher, and where the other long runs start", preset="ar"),
    "cpu": Cell(
        "the preset cpu: AR alone for half of the steps, then AR and CTC, one run, raw targets",
        _NO_PENALTY,
        preset="cpu",
    ),
    "cpu_ar_more": Cell(
        "AR alone for as many more steps as the joint cells", _SECOND_AR, preset="ctc_from_ar", start="cpu_ar"
    ),
    "cpu_ar_equal_time": Cell(
        "AR alone for as many more steps as take the time of 3000 joint steps (step_seconds_cpu.json)",
        _SECOND_AR | {"train.steps": 5900},
        preset="ctc_from_ar",
        start="cpu_ar",
    ),
    "cpu_masks": Cell(
        "AR and mask-predict from cpu_ar, with correction, without divergences, raw targets",
        _CORRECTION | _UNTAUGHT,
        preset="masks_from_ar",
        start="cpu_ar",
    ),
    "cpu_masks_taught_distilled": Cell(
        "AR and mask-predict from cpu_ar; all rows read distilled targets, AR teaches NAR",
        preset="masks_from_ar",
        start="cpu_ar",
        distilled_by="cpu_ar",
        readers="all",
    ),
    "cpu_masks_self_distilled": Cell(
        "cpu_masks_taught_distilled goes on: NAR rows read its own outputs of ten passes",
        _UNTAUGHT | {"train.steps": 1500},
        preset="masks_from_ar",
        start="cpu_masks_taught_distilled",
        distilled_by="cpu_masks_taught_distilled",
        distilled_with="nar:passes=10,length_beam=3",
    ),
    "cpu_ctc": Cell("AR and CTC from cpu_ar, raw targets", preset="ctc_from_ar", start="cpu_ar"),
    "cpu_ctc_distilled": Cell(
        "AR and CTC from cpu_ar; AR rows read raw targets, CTC rows distilled ones",
        preset="ctc_from_ar",
        start="cpu_ar",
        distilled_by="cpu_ar",
    ),
    "cpu_ctc_taught_distilled": Cell(
        "AR and CTC from cpu_ar; all rows read distilled targets, AR teaches CTC",
        {"objective.weights.kl_ar_ctc": 1.0, "objective.stop_gradient.kl_ar_ctc": "ar"},
        preset="ctc_from_ar",
        start="cpu_ar",
        distilled_by="cpu_ar",
        readers="all",
    ),
    "cpu_ctc_both": Cell(
        "AR and CTC from cpu_ar; each example once with its raw target for all rows, once with a distilled one for CTC",
        preset="ctc_from_ar",
        start="cpu_ar",
        distilled_by="cpu_ar",
        readers="both",
    ),
    "cpu_adapters_distilled": Cell(
        "CTC beside the frozen model of cpu_ar: adapters of rank 32, positions and blank; distilled targets",
        _FROZEN,
        preset="ctc_from_ar",
        start="cpu_ar",
        distilled_by="cpu_ar",
    ),
    "cpu_glancing_distilled": Cell(
        "as cpu_ctc_distilled, with glancing from step 1000, where most rows are right, falling to 0 at step 2600",
        {"objective.glancing": ((1000, 0.0), (1100, 0.4), (2600, 0.0))},
        preset="ctc_from_ar",
        start="cpu_ar",
        distilled_by="cpu_ar",
    ),
    # Earlier choices.
    "ar_lr1": Cell("AR alone, half the rate", {"objective.name": "ar", "optimizer.learning_rate": 1e-3}),
}

SEEDS = (0, 1)

_BEAM, _GREEDY, _ONE_PASS = "ar:beam=5", "ar:beam=1", "ctc:beam=1"
# (cell, decoding setting) of two systems whose difference carries a claim.
COMPARISONS = (
    (("cpu_ar_more", _BEAM), ("cpu_ctc", _BEAM)),
    (("cpu_ar_more", _BEAM), ("cpu_ctc_distilled", _BEAM)),
    (("cpu_ar_equal_time", _BEAM), ("cpu_ctc", _BEAM)),
    (("cpu_ar_equal_time", _BEAM), ("cpu_ctc_distilled", _BEAM)),
    (("cpu_ctc", _GREEDY), ("cpu_ctc", _ONE_PASS)),
    (("cpu_ctc_distilled", _GREEDY), ("cpu_ctc_distilled", _ONE_PASS)),
    (("cpu_ctc_distilled", _ONE_PASS), ("cpu_glancing_distilled", _ONE_PASS)),
    (("cpu_ctc_distilled", _ONE_PASS), ("cpu_adapters_distilled", _ONE_PASS)),
)
