"""The collective operations of a compiled program, read from its HLO text (`compiled.as_text()`)."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

Shape = tuple[int, ...]

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2} | {
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8
}  # fmt: skip
_OPERATION = re.compile(rf"^\s+(?:ROOT )?%?[\w.-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{\s*$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|\w+_computation)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Collective:
    """One collective operation of a program, as each device sees it."""

    kind: str  # one of KINDS
    shapes: tuple[Shape, ...]  # its results on one device; several results where the compiler merged operations
    result_bytes: int
    groups: tuple[Shape, ...]  # mesh positions of the devices that exchange data, group by group
    times: int  # executions in one run of the program

    @property
    def size(self) -> int:
        """Number of devices in a group."""
        return len(self.groups[0])

    @property
    def payload(self) -> int:
        """Bytes that a group reduces, gathers or exchanges: the input of a reduce-scatter, the result of the others."""
        return self.result_bytes * (self.size if self.kind == "reduce-scatter" else 1)


def collectives(program: str) -> list[Collective]:
    """The collective operations that an HLO text executes.

    `times` of an operation in a loop counts the loop's rounds. A loop of unknown length counts as one round.
    """
    bodies, entry = _computations(program)
    devices = int((re.search(r"num_partitions=(\d+)", program) or [0, 1])[1])
    operations = []
    for name, times in _times(bodies, entry).items():
        for line in bodies[name]:
            match = _OPERATION.match(line)
            if match:
                arrays = list(_results(*match.groups()))
                shapes = tuple(shape for _, shape in arrays)
                size = sum(_BYTES.get(kind, 1) * math.prod(shape) for kind, shape in arrays)
                operations.append(Collective(match[2], shapes, size, _groups(line, devices), times))
    return operations


def ring_share(kind: str, size: int) -> float:
    """Bytes that each device of a ring of `size` devices sends, as a share of the payload.

    No algorithm sends less, except for permutes. In a gather or a scatter each device sends all parts but one.
    An all-reduce is a scatter followed by a gather (Patarasuk and Yuan 2009).
    """
    if kind == "collective-permute":
        return 1.0
    return (2.0 if kind == "all-reduce" else 1.0) * (size - 1) / size


def axes_of(groups: tuple[Shape, ...], mesh: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ. `mesh`: name -> size, last innermost."""
    coordinates = np.array(np.unravel_index(np.array(groups[0]), tuple(mesh.values())))
    return tuple(axis for axis, values in zip(mesh, coordinates, strict=True) if len(set(values.tolist())) > 1)


def by_axes(operations: list[Collective], mesh: dict[str, int]) -> dict[str, dict[str, float]]:
    """Sums over a program by kind and mesh axes: "all-reduce data" -> {"payload": bytes, "count": operations}."""
    sums: dict[str, dict[str, float]] = {}
    for operation in operations:
        name = f"{operation.kind} {' '.join(axes_of(operation.groups, mesh))}".strip()
        entry = sums.setdefault(name, {"payload": 0, "count": 0})
        entry["payload"] += operation.payload * operation.times
        entry["count"] += operation.times
    return sums


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the entry computation."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        head = None if line.startswith((" ", "HloModule")) else _HEAD.match(line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> Counter[str]:
    """Executions of each computation in one run."""
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies[name]:
            trips = _TRIPS.search(line) if " while(" in line else None
            for name_called, branches in _CALLED.findall(line):
                for called in [name_called] if name_called else re.findall(r"[\w.-]+", branches):
                    if called in bodies:
                        visit(called, count * (int(trips[1]) if trips else 1))

    visit(entry, 1)
    return times


def _results(types: str, kind: str, started: str | None) -> Iterator[tuple[str, Shape]]:
    """Element type and shape of each result. The start of an asynchronous operation lists its operands first."""
    arrays = [(element, _numbers(sizes)) for element, sizes in _ARRAY.findall(types)]
    if started and kind in ("all-gather", "reduce-scatter", "all-to-all", "collective-permute"):
        arrays = [array for array in arrays if array != ("u32", ())]  # context of a permute
        arrays = arrays[len(arrays) // 2 :]
    return iter(arrays)


def _groups(line: str, devices: int) -> tuple[Shape, ...]:
    """Device groups of an operation's line, in one of the three forms that XLA prints.

    Lists: {{0,1},{2,3}}. Device numbers in another order: [groups,size]<=[dimensions]T(permutation). Axes of a mesh of
    devices: mesh['a'=2,'b'=4], device_ids=(...) {'b'}.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line)
    if listed:
        return tuple(_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if counted:
        return _groups_of_rows(_permuted(counted[2], counted[3]).reshape(_numbers(counted[1])))
    meshed = re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", line
    )
    if meshed:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
        devices_in_order = _permuted(meshed[2], meshed[3]) if meshed[2] else np.arange(math.prod(sizes.values()))
        return _along(devices_in_order, sizes, re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", meshed[4]))
    return (tuple(range(devices)),)


def _along(devices: np.ndarray, sizes: dict[str, int], chosen: list[tuple[str, str, str]]) -> tuple[Shape, ...]:
    """Groups along axes of a mesh, or along parts of axes: ("a", "2", "4") takes the 4 of "a" as 2 x 4 x rest."""
    shape, inside = [], []
    for name, size in sizes.items():
        parts = sorted((int(before or 1), int(of or size)) for axis, before, of in chosen if axis == name)
        done = 1
        for before, of in parts:
            shape += [before // done, of]
            inside.append(len(shape) - 1)
            done = before * of
        shape.append(size // done)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    ordered = devices.reshape(shape).transpose(outside + inside)
    return _groups_of_rows(ordered.reshape(-1, math.prod(shape[axis] for axis in inside)))


def _permuted(dimensions: str, permutation: str | None) -> np.ndarray:
    shape = _numbers(dimensions)
    devices = np.arange(math.prod(shape)).reshape(shape)
    return (devices.transpose(_numbers(permutation)) if permutation else devices).reshape(-1)


def _groups_of_rows(devices: np.ndarray) -> tuple[Shape, ...]:
    return tuple(map(tuple, devices.tolist()))


def _numbers(text: str) -> Shape:
    return tuple(int(number) for number in text.split(",") if number)
