"""What errors and other libraries' texts may tell, in a process of its own and through the framework's queue."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog
from livekit.agents.ipc.log_queue import LogQueueHandler, LogQueueListener
from livekit.agents.utils.aio import duplex_unix

from agent.settings import Settings
from agent.telemetry.logs import configure_logs

SAID = "Lena said my " + "dog died"  # in two parts: a traceback may show the code that is here
Run = Callable[[Callable[[], None]], None]


def _settings(**values: object) -> Settings:
    return Settings(_env_file=None, **values)  # type: ignore[arg-type,call-arg]


@contextmanager
def _forwarded() -> Iterator[None]:
    """Records made inside take the way of a job process: its handler, a socket, the worker's listener."""
    root = logging.getLogger()
    (written,) = root.handlers
    theirs, ours = socket.socketpair()
    handler = LogQueueHandler(duplex_unix._Duplex.open(theirs))
    listener = LogQueueListener(duplex_unix._Duplex.open(ours), lambda _: None)
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = [written]
        listener.start()
        handler.close()
        handler.thread.join(timeout=10)
        listener.stop()


@pytest.fixture(params=["json", "console"])
def form(request: pytest.FixtureRequest) -> str:
    """How lines are written."""
    return str(request.param)


@pytest.fixture(params=["here", "job process"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs something that logs."""

    def go(what: Callable[[], None]) -> None:
        if request.param == "here":
            what()
        else:
            with _forwarded():
                what()

    return go


def _fail() -> None:
    try:
        try:
            raise ValueError(f"wrong: {SAID}\n  {SAID}")
        except ValueError as cause:
            raise KeyError(SAID) from cause
    except KeyError:
        structlog.get_logger("agent.test").exception("failed", count=2)
        logging.getLogger("agent.test").exception("failed")
        logging.getLogger("some.library").exception("it broke", stack_info=True)


def test_an_error_is_logged_without_its_message(out: io.StringIO, form: str, run: Run) -> None:
    configure_logs(_settings(log_format=form), out)
    run(_fail)
    text = out.getvalue()
    assert "Lena" not in text
    assert text.count("KeyError") >= 3
    assert text.count("test_logs_of_errors.py") >= 3
    if form == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["event"] for line in lines] == ["failed", "failed", "it broke"]
        assert [line["logger"] for line in lines] == ["agent.test", "agent.test", "some.library"]
        assert lines[0]["count"] == 2
        assert all(line["exception"].endswith("\nKeyError") for line in lines)


def test_where_personal_data_is_let_in_an_error_has_its_message_once(out: io.StringIO, run: Run) -> None:
    configure_logs(_settings(log_personal_data=True), out)
    run(_fail)
    for line in map(json.loads, out.getvalue().splitlines()):
        assert line["exception"].endswith(f"KeyError: '{SAID}'")
        assert "Lena" not in line["event"]
        assert "message" not in line


def _fail_together() -> None:
    class Odd(Exception):
        pass

    odd = Odd(SAID)
    odd.add_note(f"{SAID}\n    {SAID}")
    inner = ExceptionGroup(f"{SAID}\n{SAID}", [ValueError(f"{SAID}\n{SAID}"), odd])
    try:
        try:
            raise ValueError(SAID)
        except ValueError as error:
            raise ExceptionGroup(SAID, [inner, error, OSError("the disk is full")]) from error
    except ExceptionGroup:
        logging.getLogger("mcp.client").exception("tools failed")
        structlog.get_logger("agent.test").exception("tools failed")


def test_the_members_of_a_group_are_logged_without_their_messages(out: io.StringIO, run: Run) -> None:
    configure_logs(_settings(), out)
    run(_fail_together)
    assert "Lena" not in out.getvalue()
    for line in map(json.loads, out.getvalue().splitlines()):
        told = line["exception"]
        assert told.count("| ExceptionGroup\n") == 2
        assert told.count("| ValueError\n") == 2
        assert "| OSError: the disk is full\n" in told
        assert "| _fail_together.<locals>.Odd\n" in told.replace(f"{__name__}.", "")
        assert told.count(", in _fail_together") == 3


def test_a_text_that_could_not_be_parsed_is_not_shown(out: io.StringIO, run: Run) -> None:
    configure_logs(_settings(), out)

    def parse() -> None:
        try:
            compile(SAID, "<answer>", "exec")
        except SyntaxError:
            logging.getLogger("agent.test").exception("failed")

    run(parse)
    assert "Lena" not in out.getvalue()
    assert "SyntaxError" in out.getvalue()


def test_an_error_that_nobody_asked_for_is_told_by_its_type(out: io.StringIO, run: Run) -> None:
    configure_logs(_settings(), out)

    async def lose() -> None:
        async def fail() -> None:
            raise ValueError(SAID)

        task = asyncio.create_task(fail(), name=SAID)
        await asyncio.wait([task])
        del task
        gc.collect()
        failed = asyncio.Event()
        asyncio.get_running_loop().call_soon(lambda said: {}[said], SAID)
        asyncio.get_running_loop().call_soon(failed.set)
        await asyncio.wait_for(failed.wait(), 20)

    run(lambda: asyncio.run(lose()))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert "Lena" not in out.getvalue()
    told = {(line["event"], line["exception"].splitlines()[-1]) for line in lines}
    assert told == {("Task exception was never retrieved", "ValueError"), ("Exception in callback", "KeyError")}


def _speak_as_a_stranger() -> None:
    log = logging.getLogger("livekit.plugins.openai")
    error = {1: SAID}
    log.error("failed to synthesize speech: %s, retrying in %ss", error, 2)
    log.error(f"openai returned an error: {error}")  # noqa: G004 — as others do
    log.error(f"{SAID} error, switching to the next")  # noqa: G004
    log.error(SAID)
    log.error("%s", SAID)
    log.error("what: %(what)s", {"what": SAID})
    log.warning("the connection is closed", extra={"status": 1})
    log.warning("100%% of %d rooms took %.1f s", 3, 0.25)
    logging.getLogger("livekit").warning("%s:%s:%s - %s", "livekit::engine", 7, "livekit::engine", "signal closed")


def test_of_a_strangers_text_only_what_its_code_says_is_kept(out: io.StringIO, run: Run) -> None:
    configure_logs(_settings(), out)
    run(_speak_as_a_stranger)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert "Lena" not in out.getvalue()
    assert [line["event"] for line in lines] == [
        "failed to synthesize speech: …, retrying in 2s",
        "openai returned an error: …",
        "… error, switching to the next",
        "…",
        "…",
        "what: …",
        "the connection is closed",
        "100% of 3 rooms took 0.2 s",
        "livekit::engine:7:livekit::engine - signal closed",
    ]
    assert {line["place"].partition(":")[0] for line in lines if "…" in line["event"]} == {"test_logs_of_errors.py"}
    assert "place" not in lines[6]


def test_a_strangers_whole_text_is_kept_where_personal_data_is_let_in(out: io.StringIO, run: Run) -> None:
    configure_logs(_settings(log_personal_data=True), out)
    run(_speak_as_a_stranger)
    events = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert sum(SAID in event for event in events) == 6
    assert "literal" not in out.getvalue()
