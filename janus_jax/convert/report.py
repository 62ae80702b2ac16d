"""What a conversion did, told in full."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What became of every part of a model: nothing is left out or made up silently."""

    used: list[str] = field(default_factory=list)  # tensors taken over
    ignored: list[tuple[str, str]] = field(default_factory=list)  # what was left out, and why
    created: list[tuple[str, str]] = field(default_factory=list)  # what was not there, and what it is now
    notes: list[str] = field(default_factory=list)  # what was changed or assumed

    def __str__(self) -> str:
        lines = [f"used: {len(self.used)} tensors"]
        lines += [f"ignored: {name} ({reason})" for name, reason in self.ignored]
        lines += [f"created: {name} ({how})" for name, how in self.created]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
