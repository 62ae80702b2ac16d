"""The report of a conversion."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What became of every tensor of a model: nothing is left out or created silently."""

    used: list[str] = field(default_factory=list)  # tensors that were taken over
    ignored: list[tuple[str, str]] = field(default_factory=list)  # (name, reason) of what was left out
    created: list[tuple[str, str]] = field(default_factory=list)  # (name, how) of what was missing and is new
    notes: list[str] = field(default_factory=list)  # what was changed or assumed

    def __str__(self) -> str:
        lines = [f"used: {len(self.used)} tensors"]
        lines += [f"ignored: {name} ({reason})" for name, reason in self.ignored]
        lines += [f"created: {name} ({how})" for name, how in self.created]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
