"""Scaling on paper, checked by the compiler: operations, traffic and memory of each device in a step on a large mesh.

    python benchmarks/scaling.py --max_devices=512 [--devices=8,64] [--seconds=300] [--json]
    python benchmarks/scaling.py --table        # from benchmarks/results/scaling.json, without compiling

The step is BART-large's joint pretraining (configs/bart_janus.py:large, bfloat16). It has one micro-batch of the
released recipe: 3 blocks of 512 tokens per device on every mesh. The program compiles it for meshes of CPU devices from
abstract arrays; nothing is allocated or run. The compiled program gives the floating-point operations, the bytes that
its operations read and write, the memory, and every collective operation with the devices that take part.

- All layers are equal. So a straight line through programs of 1+1 and 2+2 layers (encoder + decoder) gives the
  figures of 12+12; one program of 3+3 layers checks the line (`linearity`: relative differences). Vocabulary logits
  are computed at once and not in chunks (objective.projection_rows), since the compiler counts the operations of a
  loop once.
- A mesh that was not compiled (*) has the payloads of the largest compiled mesh of its layout. The bytes of the state
  follow from the shardings for every mesh.
- Computing time = operations / peak rate; sending time = bytes of ring algorithms / rate of the links. Efficiency is
  the time of one device at its peak and alone, divided by the longer of the two times (the device sends while it
  computes) or by their sum (it sends afterwards). No program reaches the peak rate: real computing takes longer, and
  sending is then a smaller share.
- Some errors make the figures worse than real ones. XLA's CPU compiler sums bfloat16 in float32, so that activations
  under `tensor` count double, and keeps float32 copies, so that memory is overestimated. Under fsdp it reduces whole
  gradients and then slices them (all-reduce); GPU and TPU compilers may scatter them (reduce-scatter), which sends
  half as much.
- Two errors make the figures better than real ones. A ring has all links of a chip here, but an axis of a TPU's torus
  has one or two. The temporary memory on the line is 7% too low.
- A step of several micro-batches (train.accumulation) reduces the gradients after each of them, so that its
  efficiency is about the same. Under fsdp it gathers the weights once.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import common
from benchmarks.collectives import by_axes, collectives, ring_share
from configs import bart_janus
from janus_jax import files, parallel
from janus_jax.command_line import ArgumentParser
from janus_jax.config import Config, ParallelConfig, resolve
from janus_jax.data.denoising import max_masked
from janus_jax.model import Janus
from janus_jax.model.presets import PRESETS
from janus_jax.train.step import init_state, jit_train_step
from janus_jax.types import Batch, Specials

RESULTS = Path(__file__).resolve().parent / "results/scaling.json"
PRESET, ROWS, LENGTH = "bart_large", 3, 512
DEVICES = (8, 16, 32, 64, 128, 256, 512)
COMPILED_LAYERS, CHECKED_LAYERS = (1, 2), 3
Sizes = tuple[int, int, int]  # data, fsdp, tensor
LAYOUTS: dict[str, Callable[[int], Sizes]] = {
    "data": lambda n: (n, 1, 1),
    "fsdp": lambda n: (1, n, 1),
    "data x fsdp 8": lambda n: (n // 8, 8, 1),
    "data x tensor 8": lambda n: (n // 8, 1, 8),
}


@dataclass(frozen=True)
class Chip:
    """Rates of a chip from its data sheet, per second. Rates of links are one way."""

    name: str
    flops: float  # operations, bfloat16, dense
    link: float  # bytes from a chip to the other chips of its node
    node: int  # chips in a node
    network: float  # bytes from a chip to other nodes; 0: the data sheet does not state it

    def rate(self, mesh: dict[str, int], axes: Sequence[str]) -> float:
        """Bytes per second that each device of a ring along mesh axes sends; 0 if it needs a link of unknown rate.

        A ring through several nodes leaves each node once. If it has n devices in a node, n rings share the work, and
        each ring leaves the node by the network link of another device. Together they use the links of all n devices.
        """
        devices = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
        ring = devices[tuple(slice(None) if axis in axes else 0 for axis in mesh)].reshape(-1)
        ring_in_node = int((ring < self.node).sum())
        return self.link if ring_in_node == len(ring) else min(self.link, ring_in_node * self.network)


# TPU v5e, v5p: Google Cloud documentation, "TPU v5e" and "TPU v5p", system architecture: 197 and 459 bf16 TFLOP/s,
# 1600 and 4800 Gbit/s of inter-chip interconnect per chip, slices of up to 256 and 8960 chips (memory: 16 GB at 819
# GB/s, 95 GB at 2765 GB/s). H100: NVIDIA H100 Tensor Core GPU datasheet, SXM: 989 bf16 TFLOP/s dense, NVLink 900 GB/s
# in both directions together (memory: 80 GB at 3.35 TB/s); NVIDIA DGX H100 datasheet: 8 GPUs, each with a ConnectX-7
# of 400 Gbit/s.
CHIPS = (
    Chip("TPU v5e", 197e12, 1600e9 / 8, 256, 0.0),
    Chip("TPU v5p", 459e12, 4800e9 / 8, 8960, 0.0),
    Chip("H100 SXM", 989e12, 900e9 / 2, 8, 400e9 / 8),
)


def make_config(layers: int) -> Config:
    """The preset with `layers` encoder layers and `layers` decoder layers."""
    raw = bart_janus.get_config("large").to_dict()
    raw["model"] |= {"vocab_size": PRESETS[PRESET].vocab_size, "dtype": "bfloat16"}
    raw["model"] |= {"encoder_layers": layers, "decoder_layers": layers}
    raw["objective"]["projection_rows"] = 0
    raw["train"]["accumulation"] = 1
    return resolve(raw)


def abstract_step(layers: int, mesh: Any) -> tuple[Any, Any, Config]:
    """State and batch of a step as shapes with shardings, and the config."""
    config = make_config(layers)
    shapes = jax.eval_shape(lambda: init_state(Janus(config.model, Specials()), config))
    shardings = parallel.state_shardings(mesh, shapes)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    rows, sharding = (1, ROWS * math.prod(mesh.shape.values())), parallel.batch_sharding(mesh, leading=1)

    def of(*width: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*rows, *width), jnp.int32, sharding=sharding)

    masked = max_masked(LENGTH, config.data.noise_ratio)
    return state, Batch(of(LENGTH), of(LENGTH), of(masked), of(), of()), config


def compiled(sizes: Sizes, layers: int) -> dict[str, Any]:
    """Compiles the step and returns the figures of one device."""
    mesh = parallel.make_mesh(ParallelConfig(*sizes))
    with jax.set_mesh(mesh):
        state, batch, config = abstract_step(layers, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        lowered = jit_train_step(Janus(config.model, Specials()), config, mesh, shardings).lower(state, batch)
        start = time.perf_counter()
        program = lowered.compile()
    costs = program.cost_analysis()
    return {
        "flops": costs["flops"],
        "bytes_accessed": costs["bytes accessed"],
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "collectives": by_axes(collectives(program.as_text()), dict(mesh.shape)),
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def state_bytes(sizes: Sizes) -> int:
    """Bytes of the whole model's training state on each device of a mesh."""
    mesh = AbstractMesh(sizes, parallel.AXES, axis_types=(AxisType.Auto,) * len(sizes))
    return parallel.device_bytes(abstract_step(PRESETS[PRESET].encoder_layers, mesh)[0])


def line(one: dict[str, Any], two: dict[str, Any], layers: int) -> dict[str, Any]:
    """Figures of `layers` layers on the straight line through the figures of 1 and of 2 layers."""

    def at(a: float, b: float) -> float:
        return a + (layers - 1) * (b - a)

    figures_at = {name: at(one[name], two[name]) for name in ("flops", "bytes_accessed", "temporary_bytes")}
    sums = {}
    for name in one["collectives"] | two["collectives"]:
        a, b = (figures["collectives"].get(name, {"payload": 0, "count": 0}) for figures in (one, two))
        sums[name] = {key: at(a[key], b[key]) for key in a}
    return figures_at | {"collectives": sums}


def linearity(one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]) -> dict[str, float]:
    """Relative difference of the line through 1 and 2 layers from the figures of 3 layers."""
    guess = line(one, two, CHECKED_LAYERS)
    missed = {name: guess[name] / three[name] - 1 for name in ("flops", "bytes_accessed", "temporary_bytes")}
    sent = [sum(entry["payload"] for entry in figures["collectives"].values()) for figures in (guess, three)]
    return missed | {"collective_payload": sent[0] / sent[1] - 1 if sent[1] else 0.0}


def sent_bytes(figures: dict[str, Any], mesh: dict[str, int]) -> dict[str, float]:
    """Bytes that each device sends, by kind of collective."""
    sent: dict[str, float] = {}
    for name, entry in figures["collectives"].items():
        kind, *axes = name.split()
        size = math.prod(mesh[axis] for axis in axes)
        sent[kind] = sent.get(kind, 0.0) + entry["payload"] * ring_share(kind, size)
    return sent


def predict(figures: dict[str, Any], mesh: dict[str, int], chip: Chip, alone: float) -> dict[str, float] | None:
    """Seconds and efficiency of a step; None if a collective needs a link whose rate the data sheet does not state.

    Args:
      figures: figures of the whole model.
      mesh: axis name -> size.
      chip: rates of the devices.
      alone: operations of a device that trains alone on the same rows.
    """
    computing, sending = figures["flops"] / chip.flops, 0.0
    for name, entry in figures["collectives"].items():
        kind, *axes = name.split()
        rate = chip.rate(mesh, axes)
        if not rate:
            return None
        sending += entry["payload"] * ring_share(kind, math.prod(mesh[axis] for axis in axes)) / rate
    ideal = alone / chip.flops
    return {
        "computing_seconds": computing,
        "sending_seconds": sending,
        "efficiency_overlapped": ideal / max(computing, sending),
        "efficiency_sequential": ideal / (computing + sending),
    }


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each layout and mesh: figures of the whole model, and the predictions from them."""
    layers = PRESETS[PRESET].encoder_layers
    whole = {key: line(entry["1"], entry["2"], layers) for key, entry in results["compiled"].items()}
    rows, seen = [], set()
    for layout, sizes_of in LAYOUTS.items():
        for devices in DEVICES:
            sizes = sizes_of(devices)
            key = name_of(sizes)
            # Meshes that use the same axes exchange the same payloads.
            like = [name_of(s) for s in map(sizes_of, DEVICES) if [n > 1 for n in s] == [n > 1 for n in sizes]]
            source = key if key in whole else next((name for name in reversed(like) if name in whole), None)
            if source is None or key in seen:
                continue
            seen.add(key)
            mesh, figures = dict(zip(parallel.AXES, sizes, strict=True)), whole[source]
            rows.append(
                {
                    "layout": layout,
                    "devices": devices,
                    "mesh": mesh,
                    "compiled": source == key,
                    "flops": figures["flops"],
                    "bytes_accessed": figures["bytes_accessed"],
                    "sent_bytes": sent_bytes(figures, mesh),
                    "state_bytes": results["state_bytes"][key],
                    "temporary_bytes": figures["temporary_bytes"],
                    "predicted": {c.name: predict(figures, mesh, c, whole["1x1x1"]["flops"]) for c in CHIPS},
                }
            )
    return rows


def table(results: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    chips = " | ".join(f"{chip.name}: ms, efficiency" for chip in CHIPS)
    lines = [
        "| devices | data x fsdp x tensor | TFLOP | GB read, written | sent GB: reduced, gathered "
        f"| state + temporary GiB | {chips} |",
        "|---:|---|---:|---:|---:|---:|" + "---:|" * len(CHIPS),
    ]
    for row in results["rows"]:
        sent = row["sent_bytes"]
        rest = sum(sent.values()) - sent.get("all-reduce", 0.0) - sent.get("all-gather", 0.0)
        parts = [f"{sent.get(kind, 0.0) / 1e9:.2f}" for kind in ("all-reduce", "all-gather")]
        cells = [
            f"{row['devices']}{'' if row['compiled'] else '*'}",
            " x ".join(map(str, row["mesh"].values())),
            f"{row['flops'] / 1e12:.2f}",
            f"{row['bytes_accessed'] / 1e9:.0f}",
            ", ".join(parts) + (f", other {rest / 1e9:.2f}" if rest > 5e6 else ""),
            f"{row['state_bytes'] / 2**30:.1f} + {row['temporary_bytes'] / 2**30:.1f}",
            *(_predicted(row["predicted"][chip.name]) for chip in CHIPS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    missed = ", ".join(f"{name.replace('_', ' ')} {value:+.1%}" for name, value in results["linearity"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"A device's part of a step with {ROWS} blocks of {LENGTH} tokens each; layers 12+12 on the line through "
            f"compiled 1+1 and 2+2, which misses 3+3 by: {missed or 'not checked'}. *: not compiled, payloads of the "
            "largest compiled mesh of the layout. Milliseconds and efficiency: sending after computing - while "
            "computing. -: leaves the slice.",
        ]
    )


def _predicted(prediction: dict[str, float] | None) -> str:
    if prediction is None:
        return "-"
    computing, sending = prediction["computing_seconds"] * 1e3, prediction["sending_seconds"] * 1e3
    return (
        f"{computing + sending:.1f} - {max(computing, sending):.1f}, {prediction['efficiency_sequential']:.0%} - "
        f"{prediction['efficiency_overlapped']:.0%}"
    )


def name_of(sizes: Sizes) -> str:
    return "x".join(map(str, sizes))


def in_subprocess(sizes: Sizes, layers: int, seconds: float) -> dict[str, Any] | None:
    """`compiled` in a process with as many CPU devices; None if it fails or takes longer than `seconds`."""
    command = [sys.executable, str(Path(__file__).resolve()), f"--compile={name_of(sizes)}", f"--layers={layers}"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        print(f"{name_of(sizes)}, {layers}+{layers} layers: left out, {error}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def measure(devices: Sequence[int], seconds: float) -> dict[str, Any]:
    """Compiles the meshes that RESULTS lacks, and writes RESULTS after each mesh."""
    settings = {"model": PRESET, "rows_a_device": ROWS, "length": LENGTH}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if {name: results.get(name) for name in settings} != settings:
        results = {"machine": common.machine(), **settings, "compiled": {}, "linearity": {}}
    wanted = [(1, 1, 1)] + [sizes_of(n) for n in devices for sizes_of in LAYOUTS.values()]
    for sizes in dict.fromkeys(wanted):
        name = name_of(sizes)
        if name not in results["compiled"]:
            by_layers = {str(layers): in_subprocess(sizes, layers, seconds) for layers in COMPILED_LAYERS}
            if None in by_layers.values():
                if sizes == (1, 1, 1):
                    raise SystemExit(
                        f"error: {name}, which the others are compared with, was left out; if it took too long, raise --seconds"
                    )
                continue
            results["compiled"][name] = by_layers
            print(f"{name}: {[figures['compile_seconds'] for figures in by_layers.values()]} s", flush=True)
        if not results["linearity"] and sizes != (1, 1, 1):
            three = in_subprocess(sizes, CHECKED_LAYERS, seconds)
            results["linearity"] = linearity(*results["compiled"][name].values(), three) if three else {}
        _write(results)
    return results


def _write(results: dict[str, Any]) -> None:
    meshes = {sizes_of(n) for n in DEVICES for sizes_of in LAYOUTS.values()}
    if not results.get("state_bytes"):
        results["state_bytes"] = {name_of(sizes): state_bytes(sizes) for sizes in sorted(meshes)}
    results |= {"chips": [vars(chip) for chip in CHIPS], "rows": rows_of(results)}
    files.write_bytes(RESULTS, (json.dumps(results, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    parser.add_argument("--max_devices", type=int, default=64, help="larger meshes are not compiled")
    parser.add_argument("--devices", help=f"compile only these of {DEVICES}, in this order")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of a compilation")
    parser.add_argument("--compile", metavar="DATAxFSDPxTENSOR", help="compile only this mesh, in this process")
    parser.add_argument("--layers", type=int, default=1, help="layers of encoder and of decoder, with --compile")
    args = parser.parse_args(argv)
    if args.compile:
        sizes = tuple(map(int, re.findall(r"\d+", args.compile)))
        jax.config.update("jax_num_cpu_devices", math.prod(sizes))
        jax.config.update("jax_disable_most_optimizations", True)  # LLVM's: its code is never run
        print(json.dumps(compiled(sizes, args.layers)))
        return 0
    if args.table:
        print(table(json.loads(RESULTS.read_text())))
        return 0
    devices = tuple(map(int, args.devices.split(","))) if args.devices else DEVICES
    results = measure([n for n in devices if n <= args.max_devices], args.seconds)
    print(table(results))
    common.finish(results, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
