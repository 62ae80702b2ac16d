"""The parser of commands without an experiment file."""

import logging

import jax
import pytest

from janus_jax.command_line import ArgumentParser, report_mistakes


@pytest.fixture
def parser():
    parser = ArgumentParser(prog="python -m tried")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--beam", type=int)
    parser.add_argument("--output")
    return parser


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --checkpoint"),
        (["--chekpoint=x"], "--chekpoint: unknown flag; did you mean --checkpoint?"),
        (["--checkpoint=x", "--source=3"], "--source: unknown flag; --help lists the flags"),
        (["--checkpoint=x", "--bem=3"], "--bem: unknown flag; did you mean --beam?"),
        (["--checkpoint=x", "--out=3"], "--out: unknown flag; did you mean --output?"),
        (["--checkpoint=x", "-beam=3"], "-beam: unknown flag; did you mean --beam?"),
        (["--checkpoint=x", "--zzz\n=3"], "--zzz : unknown flag"),
        (["--checkpoint=x", "in.txt"], "unexpected argument 'in.txt'; a flag is written --name=value"),
        (["--checkpoint=x", "--beam=--"], "--beam=--: '--' is no value"),
        (["--checkpoint=x", "--beam=x"], "argument --beam: invalid int value: 'x'"),
        (["--checkpoint=x", f"--beam={'9' * 5000}"], "argument --beam: invalid int value"),
    ],
)
def test_a_mistake_is_one_line(parser, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(arguments)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.endswith("; --help lists the flags\n")
    assert err.count("\n") == 1
    assert len(err) < 500


def test_flags_are_parsed(parser):
    parsed = parser.parse_args(["--checkpoint=x", "--beam", "3", "--output=--x"])
    assert (parsed.checkpoint, parsed.beam, parsed.output) == ("x", 3, "--x")


def test_flags_of_commands_are_known(capsys):
    parser = ArgumentParser(prog="python -m tried")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("import").add_argument("--heads", type=int)
    commands.add_parser("export").add_argument("--output")
    assert parser.parse_args(["import", "--heads=3"]).heads == 3
    for arguments, message in (
        (["import", "--head=3"], "--head: unknown flag; did you mean --heads?"),
        (["import", "--output=3"], "--output: goes with another command"),
        (["import", "--heads=x"], "argument --heads: invalid int value: 'x'"),
        (["improt"], "argument command: invalid choice: 'improt'"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        err = capsys.readouterr().err
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1


def test_a_warning_of_the_package_is_shown_once(capsys, caplog):
    log = logging.getLogger("janus_jax.decode.batching")

    def body():
        for number in (1, 1, 2):
            log.warning("%d of 3 sources", number)

    assert report_mistakes(body) == 0
    assert capsys.readouterr().err == "warning: 1 of 3 sources\nwarning: 2 of 3 sources\n"
    log.warning("afterwards")
    assert "afterwards" in caplog.text


def test_what_the_user_can_fix_is_one_line(capsys):
    def raise_(error):
        raise error

    assert report_mistakes(lambda: None) == 0
    for error, message in (
        (ValueError("in.txt: bad\n  line"), "error: in.txt: bad line\n"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "error: the device has too little memory"),
    ):
        assert report_mistakes(lambda error=error: raise_(error)) == 2
        err = capsys.readouterr().err
        assert err.startswith(message)
        assert err.count("\n") == 1
    for error in (jax.errors.JaxRuntimeError("INTERNAL"), RuntimeError("a fault of ours")):
        with pytest.raises(type(error)):
            report_mistakes(lambda error=error: raise_(error))
