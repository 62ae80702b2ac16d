"""The page in headless Chromium, its JSON endpoint, and the command."""

import json
import socket
import types
import urllib.error
import urllib.request

import pytest

from janus_jax.decode import Generator
from janus_jax.play.__main__ import main
from janus_jax.play.playground import InputError, Playground
from tests.play.conftest import Words

page = pytest.importorskip("janus_jax.play.page", reason="gradio is not installed (requirements-play.txt)")
SENTENCE = "little words"


def trained_for(generator, *modes):
    """The same model, trained for these modes only."""
    lengths = {"max_source_length": 18, "max_target_length": 24}
    return Generator(generator.net, generator.params, Words(), generator.decode_config, **lengths, trained=modes)


@pytest.fixture(scope="module")
def few(generator):
    """Three modes, which is enough for the page and saves compiling."""
    return trained_for(generator, "ar", "nar", "infill")


@pytest.fixture(scope="module")
def address(few):
    blocks = page.build(Playground(few), [SENTENCE, "more of them"], rate=0)
    yield page.launch(blocks)
    blocks.close(verbose=False)


def test_a_model_without_ar_is_shown_too(generator):
    alone = trained_for(generator, "dag")
    calls = page._Calls(Playground(alone), page.Rate(0))
    visitor = types.SimpleNamespace(client=types.SimpleNamespace(host="127.0.0.1"))
    *_, (table, session) = calls.compare(SENTENCE, 2, 4, visitor)
    [expected] = alone.generate([SENTENCE], mode="dag", search="lookahead")
    assert session.results["dag"].output.text == expected.text
    assert "DAG, beam 2" in table
    assert "speed" not in table  # there is no greedy AR to compare with


def test_a_reader_types_generates_moves_the_slider_and_fills_a_gap(few, address, chromium):
    tab = chromium.new_page()
    foreign = []
    tab.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(address) else None)
    tab.goto(address)
    tab.get_by_role("button", name=SENTENCE).click()
    tab.wait_for_function(f"document.querySelector('#sentence textarea').value === '{SENTENCE}'")
    tab.get_by_role("button", name="Generate").click()
    [greedy], [refined] = (
        few.generate([SENTENCE], mode="ar", beam=1),
        few.generate([SENTENCE], mode="nar", passes=4, trace=True),
    )
    table = tab.locator("#table")
    table.get_by_text("mask-predict").wait_for(timeout=60_000)
    rows = table.locator("tr").all_inner_texts()
    assert [row.split("\t")[1] for row in rows[1:]][:1] == [greedy.text]
    assert rows[-1].split("\t")[1] == refined.text

    tokens = tab.locator("#view-ar .token")
    tokens.last.wait_for(timeout=60_000)
    assert tokens.count() == len(greedy.tokens) + 1
    tab.locator("#slider-ar input[type=range]").fill("2")
    tab.locator("#view-ar").get_by_text("step 2").wait_for()
    assert tokens.count() == 2
    shown = [text.split("\n")[0] for text in tokens.all_inner_texts()]
    assert shown == few.tokenizer.pieces(greedy.tokens[:2])

    tab.get_by_role("tab", name="Mask-predict").click()
    tab.locator("#slider-nar input[type=range]").fill("1")
    tab.locator("#view-nar").get_by_text("pass 2").wait_for(state="detached")
    first = refined.trace[0]
    assert tab.locator("#view-nar .token").count() == len(first["tokens"])
    assert tab.locator("#view-nar .token.again").count() == sum(first["remasked"])

    tab.get_by_role("tab", name="Infilling").click()
    tab.locator("#words input").first.uncheck()
    tab.get_by_role("button", name="Fill the gaps").click()
    tab.locator("#filled").get_by_text("target").wait_for(timeout=60_000)
    playground = Playground(few)
    target = playground.with_gaps(playground.words(greedy.tokens), [0])
    [completed] = few.generate([SENTENCE], mode="infill", targets=[target])
    assert completed.text in tab.locator("#filled").inner_text()
    assert not foreign, "the page needs no other server"
    tab.close()


def test_broken_input_shows_the_message_and_changes_nothing(address, chromium):
    tab = chromium.new_page()
    tab.goto(address)
    tab.locator("#sentence textarea").fill("one\ntwo")
    tab.get_by_role("button", name="Generate").click()
    tab.get_by_text("2 lines: type one sentence").wait_for(timeout=30_000)
    assert tab.locator("#table table").count() == 0
    tab.close()


def test_programs_get_the_generators_output_or_its_message(few, address):
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(address, verbose=False)
    settings = {"beam": 1, "lenpen": 0.6}
    record = client.predict(SENTENCE, "ar", settings, api_name="/generate")
    [expected] = few.generate([SENTENCE], mode="ar", **settings)
    assert (record["text"], record["tokens"]) == (expected.text, expected.tokens)
    for call, message in (
        ((SENTENCE, "ctc", {}), "trained only for ar or nar or infill"),
        ((SENTENCE, "ar", {"checkpoint": "/etc"}), "checkpoint: not to be set here"),
        (("", "ar", {}), "no text"),
    ):
        with pytest.raises(Exception, match=message):
            client.predict(*call, api_name="/generate")
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/generate"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("upload", {"files": "x"}, 404),
        ("run/generate", {"data": ["a", "ar", {}]}, 404),
        (
            "call/generate",
            {"data": [{"path": "http://127.0.0.1/x", "meta": {"_type": "gradio.FileData"}}, "ar", {}]},
            400,
        ),
        ("queue/join", {"data": ["a", "ar", {"deep": [{"url": "http://127.0.0.1/x"}]}]}, 400),
        ("call/generate", {"data": ["x" * 2**20, "ar", {}]}, 413),
        ("call/generate", {"data": [SENTENCE, "ar", {"beam": 1}]}, 200),
    ],
)
def test_a_visitor_can_send_text_to_the_page_and_nothing_else(address, path, body, status):
    request = urllib.request.Request(
        f"{address}gradio_api/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            found = answer.status
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status


def test_a_port_that_is_in_use_is_named_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--checkpoint=no_such_run", f"--port={port}"]) == 2
    assert f"--port={port}: cannot listen" in capsys.readouterr().err
    assert (
        main(["--checkpoint=no_such_run", "--host=192.0.2.1", f"--port={port}"]) == 2
    )  # an address of documents (RFC 5737)
    assert "--host=192.0.2.1: cannot listen" in capsys.readouterr().err


def test_calls_of_an_address_are_limited():
    now = [0.0]
    rate = page.Rate(2, clock=lambda: now[0])
    rate.check("a")
    now[0] = 30.0
    rate.check("a")
    rate.check("b")
    with pytest.raises(InputError, match="wait 31 seconds"):
        rate.check("a")
    now[0] = 60.0
    rate.check("a")
    with pytest.raises(InputError, match="2 calls a minute"):
        rate.check("a")


def test_it_listens_to_this_machine_only(address):
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=70000"], "--port=70000"),
        (["--rate=-1"], "--rate=-1"),
        (["--examples=no_such_file"], "no_such_file"),
        (["--host=256.0.0.1"], "--host=256.0.0.1"),
        ([], "no_such_run"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, message, capsys):
    try:
        status = main(["--checkpoint=no_such_run", *arguments])
    except SystemExit as leave:
        status = leave.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_gradio_the_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--checkpoint=no_such_run"]) == 2
    assert "pip install -r requirements-play.txt" in capsys.readouterr().err
