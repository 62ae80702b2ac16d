"""The loss terms and the objectives: the only place that knows what belongs to each of them.

The settings, the checks, the log, the evaluation, the cost of a step and the decoding modes read these tables. A name
that is not in them raises. This module imports no other module of the package, so that every package may import it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Term:
    """A term of the loss.

    Attributes:
      families: families of decoder rows that the term reads (`model.families`); for a divergence, its two sides.
      divisor: the count that the term's sum is divided by, a name in `objective.joint.batch_divisors`.
      kind: "token": a cross-entropy of rows that each predict one token; "sentence": a negative log-likelihood of a
        whole target or of its length; "divergence": a symmetric KL between rows that predict the same token; "draft": a
        cross-entropy of what draft heads make of rows.
    """

    families: tuple[str, ...]
    divisor: Literal["ar", "heads", "masked", "ctc", "dag", "length"]
    kind: Literal["token", "sentence", "divergence", "draft"]


TERMS: dict[str, Term] = {
    "ar": Term(("ar",), "ar", "token"),
    "nar": Term(("nar",), "masked", "token"),
    "aux": Term(("aux",), "masked", "token"),
    "length": Term((), "length", "sentence"),
    "kl_ar_nar": Term(("ar", "nar"), "masked", "divergence"),
    "kl_nar_aux": Term(("nar", "aux"), "masked", "divergence"),
    "kl_ar_aux": Term(("ar", "aux"), "masked", "divergence"),
    "heads": Term(("ar",), "heads", "draft"),
    "ctc": Term(("ctc",), "ctc", "sentence"),
    "kl_ar_ctc": Term(("ar", "ctc"), "ctc", "divergence"),
    "dag": Term(("dag",), "dag", "sentence"),
    "kl_ar_dag": Term(("ar", "dag"), "dag", "divergence"),
}

OBJECTIVES: dict[str, tuple[str, ...]] = {
    "ar": ("ar", "heads"),
    "cmlm": ("nar", "length"),
    "janus": ("ar", "nar", "aux", "length", "kl_ar_nar", "kl_nar_aux", "kl_ar_aux", "heads"),
    "ctc": ("ctc",),
    "janus_ctc": ("ar", "ctc", "kl_ar_ctc", "heads"),
    "janus_all": ("ar", "nar", "aux", "length", "kl_ar_nar", "kl_nar_aux", "kl_ar_aux", "ctc", "kl_ar_ctc", "heads"),
    "dag": ("dag",),
    "janus_dag": ("ar", "dag", "kl_ar_dag", "heads"),
}

# Other metrics than `loss/<term>` and `nll/<family>`: name -> the count that the metric's sum is divided by.
COUNTERS: dict[str, str] = {
    "heads/accepted": "heads",
    "ctc/unfit": "length",
    "dag/unfit": "length",
    "dag/visits": "length",
    "dag/dead": "length",
    "dag/entropy": "length",
}


def term(name: str) -> Term:
    """The term of this name.

    Raises:
      ValueError: no term has this name.
    """
    if name not in TERMS:
        raise ValueError(f"unknown loss term {name!r}; objective/terms.py has {', '.join(TERMS)}")
    return TERMS[name]


def own_term(family: str) -> str:
    """The name of the term that trains a family of rows alone.

    Raises:
      ValueError: no term reads this family alone.
    """
    for name, entry in TERMS.items():
        if entry.families == (family,) and entry.kind != "draft":
            return name
    raise ValueError(f"no loss term of objective/terms.py trains the rows {family!r}")


def read_families(terms: Iterable[str]) -> frozenset[str]:
    """The families of rows that a set of terms reads."""
    return frozenset(family for name in terms for family in term(name).families)


def divisor_of(metric: str) -> str:
    """The count that a metric's sum over a batch is divided by, a name in `objective.joint.batch_divisors`.

    Args:
      metric: `loss/<term>`, whose divisor is that of the term; `nll/<family>` or a name in `COUNTERS`, whose divisor is
        a number of tokens or sentences.

    Raises:
      ValueError: an unknown metric.
    """
    if metric in COUNTERS:
        return f"rows/{COUNTERS[metric]}"
    group, _, name = metric.partition("/")
    if group == "loss":
        return term(name).divisor
    if group == "nll":
        return f"rows/{term(own_term(name)).divisor}"
    raise ValueError(f"unknown metric {metric!r}: objective/terms.py has no divisor for it")
