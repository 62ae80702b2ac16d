import io
import json
import sys
import threading

import pytest

from janus_jax.objective.terms import TERMS
from janus_jax.train.log import IntervalMeans, RunLog, curves, plot_curves


def step(loss):
    return {"loss/total": loss, "nll/ar": 2 * loss, "grad_norm": 1.0, "learning_rate": 0.5, "weight/nar": 0.25}


def test_a_record_holds_the_means_of_its_interval():
    window = IntervalMeans()
    for loss in (3.0, 1.0, 5.0):
        window.add(step(loss))
    assert window.means() == {"loss/total": 3.0, "nll/ar": 6.0, "grad_norm": 1.0}
    window.add(step(7.0))
    assert window.means()["loss/total"] == 7.0


def test_a_figure_that_some_steps_lack_is_the_mean_of_the_others():
    window = IntervalMeans()
    window.add(step(3.0))
    window.add(step(1.0) | {"loss/aux": 4.0})
    assert window.means() == {"loss/total": 2.0, "nll/ar": 4.0, "grad_norm": 1.0, "loss/aux": 4.0}


def test_an_interval_without_steps_has_no_means():
    assert IntervalMeans().means() == {}


def test_each_set_of_terms_is_announced_once(tmp_path, capsys):
    log = RunLog(tmp_path, 0, total=600)
    for step, terms in enumerate([("ar",), ("ar", "ctc"), ("ctc",), ("ar", "ctc"), ("ctc",)], 1):
        log.announce(step, terms, settled=3)
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith("; weights change until step 3, so loss/total may rise") for line in lines] == [
        True,
        True,
        False,
    ]
    said = [line.split(";")[0] for line in lines]
    assert said == ["step 1: the first with ar", "step 2: the first with ar, ctc", "step 3: the first with ctc"]


def test_lines_say_how_far_the_run_is(tmp_path, capsys):
    log = RunLog(tmp_path, 0, total=600)
    log.record(100, {"nll/ar": 2.0, "time/seconds_per_step": 0.6})
    log.record(500, {"nll/ar": 2.0, "time/seconds_per_step": 0.5})
    log.record(500, {"valid/loss": 3.0})
    log.record(600, {"nll/ar": 2.0, "time/seconds_per_step": 0.5})
    log.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 100/600  nll/ar 2  about 5 min left",
        "step 500/600  nll/ar 2  less than a minute left",
        "step 500/600  valid/loss 3",
        "step 600/600  nll/ar 2",
    ]


def test_targets_that_do_not_fit_their_rows_are_reported_once(tmp_path, capsys):
    log = RunLog(tmp_path, 0, total=600)
    for step, share in ((10, 0.05), (20, 0.5), (30, 1.0)):
        log.record(step, {"nll/ctc": 0.0, "ctc/unfit": share})
    log.close()
    assert [line for line in capsys.readouterr().err.splitlines() if "/600" not in line] == [
        "step 20: warning: 50% of the targets are too long for their CTC rows, and their loss is 0; raise "
        "config.model.ctc_ratio, or check the targets"
    ]


def test_a_failed_write_of_events_ends_the_run_and_does_not_block_it(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0, total=600)
    writer = log._board.file_writer.event_writer
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def full(_event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._ev_writer, "write_event", full)
    errors = []

    def records():
        try:
            for step in range(40):
                log.record(step, {f"loss/{name}": 1.0 for name in range(40)})
                writer._worker.join(0.5)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=records, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "TensorBoard" in str(errors[0])


def test_a_terminal_that_has_gone_does_not_end_the_run(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, _text):
            raise OSError(5, "Input/output error")

    log = RunLog(tmp_path, 0, total=600)
    monkeypatch.setattr(sys, "stderr", Gone())
    log.record(10, {"nll/ar": 2.0})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 10, "nll/ar": 2.0}


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_an_interval_survives_a_resume(cut):
    losses = [0.1, 0.2, 0.7]
    whole, first = IntervalMeans(), IntervalMeans()
    for loss in losses:
        whole.add(step(loss))
    for loss in losses[:cut]:
        first.add(step(loss))
    resumed = IntervalMeans(**json.loads(json.dumps(first.state())))
    for loss in losses[cut:]:
        resumed.add(step(loss))
    assert resumed.means() == whole.means()


def test_the_curves_have_a_panel_for_each_unit(tmp_path):
    records = [
        {"step": 1, "nll/ar": 5.0, "loss/kl_ar_nar": 2.0, "loss/length": 4.0},
        {"step": 2, "nll/ar": 4.0, "loss/kl_ar_nar": 1.0, "loss/length": 3.0, "valid/nll/ar": 4.5},
    ]

    def panels(records):
        return [[line.get_label() for line in axis.lines] for axis in curves(records).axes]

    assert panels(records) == [
        ["AR: 4", "AR, validation: 4.5"],
        ["AR and NAR: 1"],
        ["length: 3"],
    ]
    assert panels([*records, {"step": 2, "valid/bleu_ar": 30.0}])[3:] == [["AR, validation: 30"]]
    assert panels([{"step": 1, "nll/ar": 5.0}]) == [["AR: 5"]]
    assert panels([{"step": 1, "nll/ar": 5.0, "nll/other": 4.0}]) == [["AR: 5", "OTHER: 4"]]
    assert panels([]) == []
    (tmp_path / "metrics.jsonl").write_text("")
    assert plot_curves(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_lines_of_a_panel_differ_without_colors_and_have_units():
    families = [name for name, term in TERMS.items() if term.kind in ("token", "sentence") and name != "length"]
    divergences = [name for name, term in TERMS.items() if term.kind == "divergence"]
    names = [*(f"nll/{name}" for name in families), *(f"loss/{name}" for name in divergences), "loss/length"]
    names += [
        f"valid/{name}" for name in [*names, "heads/accepted", *(f"bleu_{name}" for name in ("ar", "nar", "ctc"))]
    ]
    figure = curves([{"step": step, **dict.fromkeys(names, 1.0)} for step in (1, 500)])
    colors = {}
    for axis in figure.axes:
        assert axis.get_xlabel() == "step"
        assert axis.get_ylabel()
        assert axis.get_xlim()[0] == axis.get_ylim()[0] == 0
        looks = {(line.get_linestyle(), line.get_marker()) for line in axis.lines}
        assert len(looks) == len(axis.lines)
        for line in axis.lines:
            colors.setdefault(line.get_label().split(":")[0].split(",")[0], set()).add(line.get_color())
    assert {"AR", "NAR", "AUX", "CTC", "DAG", "AR and NAR", "accepted"} <= set(colors)
    assert all(len(used) == 1 and used != {"black"} for used in colors.values())  # a family has one color everywhere
