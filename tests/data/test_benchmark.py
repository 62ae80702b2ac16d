"""The data benchmark runs and reports what it measured."""

import json

from benchmarks import data as benchmark


def test_benchmark_reports_a_rate(capsys):
    assert benchmark.main(["--pairs=600", "--seconds=0.05", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 20 < result["mean_target_length"] < 34
    assert 0 < result["slowest"] <= result["pairs_per_second"] <= result["fastest"]
