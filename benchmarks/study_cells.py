"""The cells of benchmarks/study.py: what each changes in the preset `study`, and why it was run."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One training run of the study."""

    why: str
    changes: dict[str, Any] = field(default_factory=dict)


_TEACHER = {"objective.stop_gradient.kl_ar_nar": "ar", "objective.stop_gradient.kl_ar_aux": "ar"}
_JANUS = {"objective.name": "janus"}


def _late(begin: int, **weights: float) -> dict[str, Any]:
    """Weights that are zero before step `begin` and rise to their values within 100 steps."""
    return {f"objective.weights.{name}": ((begin, 0.0), (begin + 100, value)) for name, value in weights.items()}


_OTHERS = {"nar": 0.5, "aux": 0.5, "length": 0.1, "kl_ar_nar": 1.0, "kl_nar_aux": 1.0, "kl_ar_aux": 3.0}

_CTC = {"model.ctc_ratio": 2.0}
_JOINT_CTC = _CTC | {"objective.name": "janus_ctc"}

CELLS = {
    "ar": Cell("baseline: AR alone", {"objective.name": "ar"}),
    "cmlm": Cell("baseline: NAR alone", {"objective.name": "cmlm", "objective.weights.nar": 1.0}),
    "janus": Cell("the joint loss with the released weights", _JANUS),
    "janus_teacher": Cell("AR's side of its divergences is fixed: it teaches and isn't taught", _JANUS | _TEACHER),
    "janus_teacher_ar4": Cell("besides, AR's weight is 4", _JANUS | _TEACHER | {"objective.weights.ar": 4.0}),
    "janus_late_teacher": Cell("besides, AR alone for the first 600 steps", _JANUS | _TEACHER | _late(600, **_OTHERS)),
    "janus_late_teacher_ar4": Cell(
        "besides, AR's weight is 4",
        _JANUS | _TEACHER | _late(600, **_OTHERS) | {"objective.weights.ar": 4.0},
    ),
    "ar_lr1": Cell("AR alone, half the rate", {"objective.name": "ar", "optimizer.learning_rate": 1e-3}),
    "ar_content": Cell("AR alone, one stream of rows", {"objective.name": "ar", "model.ar_stream": "content"}),
    "janus_teacher_content": Cell(
        "the joint loss with AR as teacher, one AR stream", _JANUS | _TEACHER | {"model.ar_stream": "content"}
    ),
    "janus_late_teacher_content": Cell(
        "AR alone for 400 steps, then the joint loss with AR as teacher; one AR stream",
        _JANUS | _TEACHER | _late(400, **_OTHERS) | {"model.ar_stream": "content"},
    ),
    "janus_late_teacher_content_ar3": Cell(
        "besides, AR's weight is 3",
        _JANUS | _TEACHER | _late(400, **_OTHERS) | {"model.ar_stream": "content", "objective.weights.ar": 3.0},
    ),
    "ctc": Cell("baseline: CTC alone", _CTC | {"objective.name": "ctc"}),
    "janus_ctc": Cell("AR and CTC with the divergence between them", _JOINT_CTC),
    "janus_late_teacher_content_ar10": Cell(
        "AR's weight is 10 instead",
        _JANUS | _TEACHER | _late(400, **_OTHERS) | {"model.ar_stream": "content", "objective.weights.ar": 10.0},
    ),
    "janus_ctc_late_teacher_content_ar3": Cell(
        "AR alone for 400 steps, then CTC with AR as teacher; one AR stream, AR's weight is 3",
        _JOINT_CTC
        | _late(400, ctc=1.0, kl_ar_ctc=1.0)
        | {"objective.stop_gradient.kl_ar_ctc": "ar", "model.ar_stream": "content", "objective.weights.ar": 3.0},
    ),
    "janus_late_content_ar3": Cell(
        "AR alone for 400 steps, then the joint loss, nobody fixed; one AR stream, AR's weight is 3",
        _JANUS | _late(400, **_OTHERS) | {"model.ar_stream": "content", "objective.weights.ar": 3.0},
    ),
    "janus_late_teacher_ar3": Cell(
        "AR alone for 400 steps, then the joint loss with AR as teacher; two AR streams, AR's weight is 3",
        _JANUS | _TEACHER | _late(400, **_OTHERS) | {"objective.weights.ar": 3.0},
    ),
    "janus_ctc_teacher": Cell(
        "besides, AR's side of the divergence is fixed", _JOINT_CTC | {"objective.stop_gradient.kl_ar_ctc": "ar"}
    ),
    "janus_ctc_no_kl": Cell(
        "AR and CTC side by side, no divergence", _JOINT_CTC | {"objective.weights.kl_ar_ctc": 0.0}
    ),
}
