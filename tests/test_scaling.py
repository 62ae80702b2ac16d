"""The scaling benchmark: collectives in the text of a compiled program, and predictions. Nothing is compiled here."""

import json
import math

import pytest

from benchmarks import scaling
from benchmarks.collectives import axes_of, by_axes, collectives, ring_share
from benchmarks.scaling import CHIPS, Chip, line, linearity, predict, sent_bytes

# All forms of groups, tuples, asynchronous starts and loops that XLA prints, on a mesh of 2 x 2 x 2.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%body.1 (carry: (s32[], f32[24,16])) -> (s32[], f32[24,16]) {
  %carry = (s32[], f32[24,16]{1,0}) parameter(0)
  %inner = (s32[], f32[4]) while(%carry), condition=%test.2, body=%body.2, backend_config={"known_trip_count":{"n":"5"}}
  %all-reduce.1 = f32[24,16]{1,0} all-reduce(%carry.1), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %next = (s32[], f32[24,16]{1,0}) tuple(%n, %all-reduce.1)
}

%body.2 (carry: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %all-reduce.2 = f32[4]{0} all-reduce(%carry.2), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}

%test (carry: (s32[], f32[24,16])) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

%never (x: f32[9]) -> f32[9] {
  ROOT %all-reduce.9 = f32[9]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}

ENTRY %main (x: f32[8,16], w: bf16[16,8]) -> f32[8,16] {
  %loop = (s32[], f32[24,16]{1,0}) while(%start), condition=%test, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %gathered = bf16[16,16]{1,0:T(8,128)(2,1)} all-gather(%w), channel_id=2, replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={1}
  %all-reduce.3 = (f32[16]{0}, /*index=1*/s32[]) all-reduce(%g, %n), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
  %all-reduce.4 = f32[2,3]{1,0} all-reduce(%h), replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_2'}, to_apply=%add
  %all-reduce.5 = f32[] all-reduce(%i), replica_groups={}, to_apply=%add
  %scattered = f32[2,16]{1,0} reduce-scatter(%j), replica_groups=mesh['axis_0'=8] {'axis_0':(2)2}, dimensions={0}, to_apply=%add
  %ags = (bf16[16,8]{1,0}, bf16[16,64]{1,0}) all-gather-start(%w), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={1}
  %agd = bf16[16,64]{1,0} all-gather-done(%ags)
  %exchanged = (f32[4,2]{1,0}, f32[4,2]{1,0}) all-to-all(%k, %l), replica_groups={{0,4},{1,5},{2,6},{3,7}}
  ROOT %moved = f32[8,16]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(step)/all-gather(x)"}
}
"""
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def test_every_collective_is_read_with_its_shapes_groups_and_repetitions():
    read = [(c.kind, c.shapes, c.result_bytes, c.times, axes_of(c.groups, MESH)) for c in collectives(PROGRAM)]
    assert sorted(read) == sorted(
        [
            ("all-reduce", ((24, 16),), 1536, 3, ("tensor",)),
            ("all-reduce", ((4,),), 16, 15, ("tensor",)),
            ("all-gather", ((16, 16),), 512, 1, ("fsdp",)),
            ("all-reduce", ((16,), ()), 68, 1, ("data", "fsdp")),
            ("all-reduce", ((2, 3),), 24, 1, ("data",)),
            ("all-reduce", ((),), 4, 1, ("data", "fsdp", "tensor")),
            ("reduce-scatter", ((2, 16),), 128, 1, ("fsdp",)),
            ("all-gather", ((16, 64),), 2048, 1, ("data", "fsdp", "tensor")),
            ("all-to-all", ((4, 2), (4, 2)), 64, 1, ("data",)),
            ("collective-permute", ((8, 16),), 512, 1, ("tensor",)),
        ]
    )


def test_sums_by_kind_and_axes():
    sums = by_axes(collectives(PROGRAM), MESH)
    assert sums["all-reduce tensor"] == {"payload": 3 * 1536 + 15 * 16, "count": 18}
    # The input of a reduce-scatter is as large as all its results together.
    assert sums["reduce-scatter fsdp"] == {"payload": 256, "count": 1}
    assert len(sums) == 9


def test_a_program_of_one_device_has_no_collectives():
    assert collectives("HloModule m\n\nENTRY %main (x: f32[2]) -> f32[2] {\n  ROOT %x = f32[2] parameter(0)\n}\n") == []


def test_shares_of_rings():
    assert ring_share("all-reduce", 8) == 2 * 7 / 8
    assert ring_share("all-gather", 8) == ring_share("reduce-scatter", 8) == ring_share("all-to-all", 8) == 7 / 8
    assert ring_share("all-reduce", 1) == 0
    assert ring_share("collective-permute", 2) == 1


CHIP = Chip("chip", flops=100.0, link=40.0, node=8, network=4.0)


@pytest.mark.parametrize(
    ("mesh", "axes", "rate"),
    [
        ((8, 1, 1), ("data",), 40.0),  # within a node
        ((16, 1, 1), ("data",), 32.0),  # eight devices per node: all their network links
        ((2, 8, 1), ("fsdp",), 40.0),
        ((2, 8, 1), ("data",), 4.0),  # one device per node
        ((4, 4, 1), ("data",), 8.0),  # two devices per node
        ((4, 4, 1), ("data", "fsdp"), 32.0),
        ((2, 1, 8), ("tensor",), 40.0),
    ],
)
def test_the_rate_of_a_ring_depends_on_its_devices_in_a_node(mesh, axes, rate):
    assert CHIP.rate(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)), axes) == rate


def figures(flops, payload, kind="all-reduce data"):
    return {
        "flops": flops,
        "bytes_accessed": 2 * flops,
        "temporary_bytes": 7.0,
        "collectives": {kind: {"payload": payload, "count": 1}} if payload else {},
    }


def test_times_and_efficiencies():
    mesh = {"data": 8, "fsdp": 1, "tensor": 1}
    prediction = predict(figures(1000.0, 320.0), mesh, CHIP, alone=900.0)
    assert prediction["computing_seconds"] == 10
    assert prediction["sending_seconds"] == 320 * 1.75 / 40 == 14
    assert prediction["efficiency_overlapped"] == 9 / 14
    assert prediction["efficiency_sequential"] == 9 / 24
    assert sent_bytes(figures(1000.0, 320.0), mesh) == {"all-reduce": 560}
    alone = predict(figures(900.0, 0.0), mesh, CHIP, alone=900.0)
    assert alone["efficiency_overlapped"] == alone["efficiency_sequential"] == 1
    without_network = Chip("slice", 100.0, 40.0, 8, 0.0)
    assert predict(figures(1000.0, 320.0), mesh | {"data": 16}, without_network, 900.0) is None


def test_more_layers_lie_on_a_line():
    one, two = figures(10.0, 100.0), figures(14.0, 130.0)
    twelve = line(one, two, 12)
    assert (twelve["flops"], twelve["bytes_accessed"], twelve["temporary_bytes"]) == (54, 108, 7)
    assert twelve["collectives"] == {"all-reduce data": {"payload": 430, "count": 1}}
    # A collective that only the longer program has starts at zero.
    assert line(figures(10.0, 0.0), two, 3)["collectives"]["all-reduce data"] == {"payload": 260, "count": 2}
    missed = linearity(one, two, figures(20.0, 160.0))
    assert missed == pytest.approx(
        {"flops": -0.1, "bytes_accessed": -0.1, "temporary_bytes": 0, "collective_payload": 0}
    )


def test_the_committed_results_give_their_rows_and_table():
    results = json.loads(scaling.RESULTS.read_text())
    assert results["rows"] == json.loads(json.dumps(scaling.rows_of(results)))
    assert [chip["name"] for chip in results["chips"]] == [chip.name for chip in CHIPS]
    lines = scaling.table(results).splitlines()
    assert len(lines) == len(results["rows"]) + 4
    assert len({row.count("|") for row in lines[:-2]}) == 1
    for row in results["rows"]:
        assert row["devices"] == math.prod(row["mesh"].values())
        for prediction in filter(None, row["predicted"].values()):
            assert 0 < prediction["efficiency_sequential"] <= prediction["efficiency_overlapped"] <= 1.01
