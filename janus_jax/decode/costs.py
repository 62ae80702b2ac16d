"""What decoder passes cost, from which speculative search knows when drafting pays.

Legend: N rows of a search, T slots of a draft, W drafted tokens verified in a round.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What decoder passes cost, in any one unit."""

    plain: float  # a greedy step
    draft: float
    verify: tuple[tuple[int, float], ...]  # (W, cost) of the widths to choose from, ascending

    def worthwhile(self) -> tuple["Width", ...]:
        """The widths that can pay at all."""
        widths = (Width(w, cost / self.plain, (self.draft + cost) / self.plain) for w, cost in self.verify)
        return tuple(width for width in widths if width.drafted < width.tokens + 1)


@dataclass(frozen=True)
class Width:
    """So many drafted tokens verified in a round, and what the round costs in greedy steps."""

    tokens: int
    reused: float  # with what is left of a draft
    drafted: float  # with a new one


def costs_by_rows(
    rows: int, *, slots: int, widths: Sequence[int], passes: int, row_groups: int, free_rows: int
) -> Costs:
    """Costs of decoder passes from the number of rows that go through the layers.

    A pass takes as long as reading the weights, plus the arithmetic of its rows: cost 1 + rows / free_rows.

    Args:
      rows: N.
      slots: T.
      widths: W to choose from.
      passes: of mask-predict for a draft.
      row_groups: decoder rows for each AR token (2 with query rows).
      free_rows: rows whose arithmetic takes as long as reading the weights.
    """

    def cost(count: int) -> float:
        return 1.0 + count / free_rows

    return Costs(
        plain=cost(row_groups * rows),
        draft=passes * cost(slots * rows),
        verify=tuple((width, cost(row_groups * rows * (width + 1))) for width in sorted(set(widths))),
    )
