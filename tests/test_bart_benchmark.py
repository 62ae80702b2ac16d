"""The benchmark that takes a BART to both ways and back, at a small size."""

import json

import pytest

from benchmarks import bart


@pytest.mark.slow
def test_a_bart_goes_both_ways_and_back(tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    (tmp_path / "pairs.tsv").write_text("".join(f"{i} small dogs play in the snow\t{i} dogs\n" for i in range(200)))
    arguments = [
        f"--pairs={tmp_path / 'pairs.tsv'}",
        f"--folder={tmp_path / 'out'}",
        "--size=bart_mini",
        "--tokens=128",
    ]
    assert bart.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["ar_half_kept_bitwise"]
    assert all(row["read_back_bitwise"] for row in figures["training"].values())
    assert not bart.kept(tmp_path / "out/imported", tmp_path / "out/base")
    assert bart.main(arguments) == 2  # the folder is there
    assert "File exists" in capsys.readouterr().err
