"""The families of decoder rows, one module each: the input tokens of the rows, their positions, what they attend to.

A family is a pure function that turns a batch into groups of rows. A new family needs a module here and an entry in
`FAMILIES`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.families import ar, aux, ctc, dag, mask_predict
from janus_jax.model.layout import RowGroup, RowLayout
from janus_jax.types import Batch, Specials


@dataclass(frozen=True)
class Family:
    """A family of rows.

    Attributes:
      groups: the rows of a batch.
      attends: the other families that its rows attend to.
      of_source: the rows of sources [B, S], for a family of one group of rows that attend to each other and need no target.
    """

    groups: Callable[[Batch, ModelConfig, Specials], tuple[RowGroup, ...]]
    attends: tuple[str, ...] = ()
    of_source: Callable[[jax.Array, ModelConfig, Specials], RowGroup] | None = None


# The order is that of the joint pass. Groups that one group attends to must be adjacent, so aux comes after nar.
FAMILIES: dict[str, Family] = {
    "ar": Family(ar.groups),
    "ctc": Family(ctc.groups, of_source=ctc.source_rows),
    "dag": Family(dag.groups, of_source=dag.source_rows),
    "nar": Family(mask_predict.groups),
    "aux": Family(aux.groups, attends=("nar",)),
}


def with_attended(families: Collection[str]) -> tuple[str, ...]:
    """`families` and the families that their rows attend to, in the order of the joint pass.

    Raises:
      ValueError: a family is unknown.
    """
    if unknown := sorted(set(families) - set(FAMILIES)):
        raise ValueError(f"unknown families of rows {unknown}; model/families has {', '.join(FAMILIES)}")
    wanted = {*families, *(other for name in families for other in FAMILIES[name].attends)}
    return tuple(name for name in FAMILIES if name in wanted)


def row_layout(
    batch: Batch,
    config: ModelConfig,
    specials: Specials,
    families: Collection[str],
    shown: Mapping[str, jax.Array] | None = None,
) -> RowLayout:
    """The rows of the joint pass over a batch.

    Args:
      batch: one micro-batch.
      config: the architecture.
      specials: ids of the special tokens.
      families: names in `FAMILIES`; the layout has no rows of other families.
      shown: family -> [B, R] int32 tokens that its rows read instead of their usual input; -1 keeps the usual input.
        Only for families with one group.

    Raises:
      ValueError: `families` is empty or has an unknown name, a family that another one attends to is missing, or the
        model has no rows of a family.
    """
    if not families or with_attended(families) != tuple(name for name in FAMILIES if name in families):
        raise ValueError(
            f"families {tuple(families)}: name at least one, and with aux also nar, because aux rows attend to nar rows"
        )
    groups: list[RowGroup] = []
    for name, family in FAMILIES.items():
        if name in families:
            rows = family.groups(batch, config, specials)
            if shown and name in shown:
                (group,) = rows
                rows = (show(group, shown[name], specials),)
            groups.extend(rows)
    return RowLayout(tuple(groups))


def source_group(family: str, source: jax.Array, config: ModelConfig, specials: Specials) -> RowGroup:
    """The rows of sources [B, S] of a family that needs no target.

    Raises:
      ValueError: the model has no such rows, or the family's rows need a target.
    """
    if family not in FAMILIES or FAMILIES[family].of_source is None:
        able = [name for name, one in FAMILIES.items() if one.of_source]
        raise ValueError(f"rows {family!r} need a target; those of {', '.join(able)} do not")
    return FAMILIES[family].of_source(source, config, specials)


def show(group: RowGroup, shown: jax.Array, specials: Specials) -> RowGroup:
    """The group with the input tokens `shown` [B, R] int32; -1 keeps the usual input."""
    usual = jnp.full_like(shown, specials.mask) if group.tokens is None else group.tokens
    return replace(group, tokens=jnp.where(shown >= 0, shown, usual))
