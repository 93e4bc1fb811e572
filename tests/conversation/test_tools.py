"""What the model's tools answer: sentences it can say, whatever device, library and Manager API do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from livekit.agents.llm.utils import build_legacy_openai_schema

from agent.conversation.control_words import Control
from agent.conversation.playback import SORRY, Playback
from agent.conversation.tools import NOTHING, SILENT, Toolbox
from agent.device.calls import DeviceCalls
from agent.device.link import DeviceLink
from agent.device.messages import DeviceAnswer, Outgoing
from agent.errors import NotFound, Unavailable
from agent.settings import Settings
from agent.speaker.speaker import Speaker


class AnsweringDevice:
    """Takes calls and answers each as told; None: not at all."""

    def __init__(self, answer: dict[str, Any] | None) -> None:
        self.answer = answer
        self.called: list[dict[str, Any]] = []
        self.asked = asyncio.Event()
        self.calls = DeviceCalls(self.send)

    async def send(self, message: Outgoing) -> None:
        call = json.loads(message.payload)
        self.called.append(call["function_call"])
        self.asked.set()
        if self.answer is not None:
            self.calls.on_message(DeviceAnswer(request_id=call["request_id"], **self.answer))


class Room:
    """As much of a room as a link needs before it is connected."""

    def on(self, *_: Any) -> None: ...

    def off(self, *_: Any) -> None: ...


@pytest.fixture
async def playback() -> AsyncIterator[Playback]:
    """Without a library and with nothing to play from."""
    speaker = Speaker()
    link = DeviceLink(cast("Any", Room()), "02:00:00:00:00:01")
    said: list[str] = []
    tasks: list[asyncio.Future[Any]] = []

    async def sorry(purpose: str) -> None:
        said.append(purpose)

    made = Playback(
        Settings(_env_file=None),  # type: ignore[call-arg]
        library=None,
        link=link,
        speaker=speaker,
        spawn=lambda work, _: tasks.append(asyncio.ensure_future(work)),
        sorry=sorry,
    )
    made.__dict__.update(said=said, speaker=speaker, link=link, tasks=tasks)
    yield made
    await made.aclose()
    await link.aclose()
    await speaker.aclose()


def toolbox(playback: Playback, device: AnsweringDevice, error: Exception | None = None) -> Toolbox:
    async def switch(_mode: str) -> None:
        if error is not None:
            raise error

    return Toolbox(
        playback,
        device.calls,
        zone=ZoneInfo("Asia/Kolkata"),
        switch=switch,
        goodbye=lambda: None,
        now=lambda zone: datetime(2026, 2, 3, 18, 5, tzinfo=zone),
    )


CONTEXT = cast("Any", SimpleNamespace())


@pytest.mark.parametrize(
    ("wish", "function", "arguments"),
    [
        ({"colour": "Red"}, "self_set_light_color", {"red": 255, "green": 0, "blue": 0}),
        ({"colour": "#0a10ff"}, "self_set_light_color", {"red": 10, "green": 16, "blue": 255}),
        ({"mode": "rainbow"}, "self_set_light_mode", {"mode": "rainbow"}),
    ],
)
async def test_the_light_is_changed(
    playback: Playback, wish: dict[str, str], function: str, arguments: dict[str, Any]
) -> None:
    device = AnsweringDevice({"ok": True})
    assert await toolbox(playback, device).light(**wish) == "Done."
    assert device.called == [{"name": function, "arguments": arguments}]


@pytest.mark.parametrize("wish", [{"colour": "sparkly"}, {"colour": ""}, {"colour": "#zzzzzz"}, {"mode": "; rm -rf"}])
async def test_a_light_there_is_not_reaches_no_device(playback: Playback, wish: dict[str, str]) -> None:
    device = AnsweringDevice({"ok": True})
    answer = await toolbox(playback, device).light(**wish)
    assert answer != "Done."
    assert device.called == []


async def test_a_device_that_refuses_is_told_so(playback: Playback) -> None:
    tools = toolbox(playback, AnsweringDevice({"ok": False, "error": "no"}))
    assert await tools.volume(level=30) == "The device could not change its volume."
    assert "could not" in await tools.battery()


async def test_battery_and_volume_are_read(playback: Playback) -> None:
    battery = AnsweringDevice({"ok": True, "value": {"percentage": 40, "charging": True}})
    assert await toolbox(playback, battery).battery() == "40 percent, charging."
    volume = AnsweringDevice({"ok": True, "value": {"volume": 70}})
    assert await toolbox(playback, volume).volume() == "The volume is 70 percent."
    nonsense = AnsweringDevice({"ok": True, "value": "plenty"})
    assert await toolbox(playback, nonsense).battery() == SILENT


async def test_louder_is_a_step(playback: Playback) -> None:
    device = AnsweringDevice({"ok": True})
    await toolbox(playback, device).volume(change=-10)
    assert device.called == [{"name": "self_volume_down", "arguments": {"step": 10}}]


async def test_the_time_is_the_childs(playback: Playback) -> None:
    assert await toolbox(playback, AnsweringDevice(None)).date_and_time() == "Tuesday, 03 February 2026, 18:05"


@pytest.mark.parametrize(
    ("error", "says"),
    [(None, "Done"), (NotFound("no such mode"), "no such mode"), (Unavailable("down"), "could not be changed")],
)
async def test_a_mode_is_changed_or_it_is_said(playback: Playback, error: Exception | None, says: str) -> None:
    assert says in await toolbox(playback, AnsweringDevice(None), error).switch_mode("Teacher")


async def test_without_a_library_the_model_says_sorry(playback: Playback) -> None:
    tools = toolbox(playback, AnsweringDevice(None))
    for answer in (await tools.play_music(CONTEXT, "twinkle"), await tools.play_story(CONTEXT)):
        assert answer is not None
        assert "Say sorry" in answer
    assert await tools.playback("next") == NOTHING
    assert await tools.now_playing() == NOTHING


async def test_a_parents_wish_that_cannot_be_had_is_said(playback: Playback) -> None:
    await playback.play_wish("music", "twinkle", None)
    assert playback.__dict__["said"] == [SORRY]


async def test_control_words_concern_what_sounds(playback: Playback) -> None:
    assert playback.understand("please go on") is None, "nothing was stopped"
    assert playback.understand("next") is None
    assert playback.understand("what is next to the house") is None


STOPS = (("en", "Stop!"), ("en", "cancel"), ("hi", "बंद करो"), ("zh", "关掉"), ("de", "aus"))


def hear(playback: Playback, words: str, language: str) -> Control | None:
    """The child says something, and the recogniser has it a moment after the last sound."""
    playback.child_speaking(True)
    playback.child_speaking(False)
    return playback.understand(words, language)


@pytest.mark.parametrize(("language", "words"), STOPS)
async def test_a_stop_with_nothing_to_stop_is_for_the_model(playback: Playback, language: str, words: str) -> None:
    assert hear(playback, words, language) is None
    playback.agent_state("thinking")
    assert playback.understand(words, language) is None, "the answer to these very words is being prepared"


@pytest.mark.parametrize(("language", "words"), STOPS)
@pytest.mark.parametrize("state", ["thinking", "speaking"])
async def test_a_stop_of_words_and_answers_is_obeyed(playback: Playback, language: str, words: str, state: str) -> None:
    playback.agent_state(state)
    playback.child_speaking(True)
    playback.agent_state("listening")  # interrupted by the child's voice
    playback.child_speaking(False)
    assert playback.understand(words, language) is Control.STOP
    playback.control(Control.STOP)
    assert playback.understand(words, language) is Control.STOP, "asked again for the same words"
    assert hear(playback, words, language) is Control.STOP, "said again"


async def test_a_stop_of_a_recorded_sentence_is_obeyed(playback: Playback) -> None:
    speaker = playback.__dict__["speaker"]
    speaker.play(np.zeros(2400, np.int16))
    assert hear(playback, "stop", "en") is Control.STOP


@pytest.mark.parametrize(
    ("answer", "says"), [({"ok": True}, []), ({"ok": False, "error": "no"}, [SORRY]), (None, [SORRY])]
)
@pytest.mark.parametrize("control", [Control.LOUDER, Control.QUIETER])
async def test_a_device_that_changes_no_loudness_is_said_so(
    playback: Playback, control: Control, answer: dict[str, Any] | None, says: list[str]
) -> None:
    device = AnsweringDevice(answer)
    link, tasks = playback.__dict__["link"], playback.__dict__["tasks"]
    link.calls = device.calls
    playback.control(control)
    if answer is None:
        await asyncio.wait_for(device.asked.wait(), 20)
        device.calls.close()
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert [call["name"] for call in device.called] == [f"self_volume_{'up' if control is Control.LOUDER else 'down'}"]
    assert playback.__dict__["said"] == says


async def test_the_goodbye_waits_for_what_is_still_being_said(playback: Playback) -> None:
    said, heard = [], asyncio.Event()
    box = Toolbox(
        playback,
        AnsweringDevice(None).calls,
        zone=ZoneInfo("UTC"),
        switch=cast("Any", None),
        goodbye=lambda: said.append("goodbye"),
    )
    saying = asyncio.ensure_future(box.say_goodbye(cast("Any", SimpleNamespace(wait_for_playout=heard.wait))))
    done, _ = await asyncio.wait({saying}, timeout=0.01)
    assert not done
    assert said == []
    heard.set()
    await asyncio.wait_for(saying, 5)
    assert said == ["goodbye"]


def test_descriptions_are_short(playback_tools: list[Any]) -> None:
    schemas = [build_legacy_openai_schema(tool) for tool in playback_tools]
    assert len(json.dumps(schemas)) < 6000
    assert len({schema["function"]["name"] for schema in schemas}) == len(schemas) == 10


@pytest.fixture
def playback_tools() -> list[Any]:
    box = Toolbox(
        cast("Any", None),
        cast("Any", None),
        zone=ZoneInfo("UTC"),
        switch=cast("Any", None),
        goodbye=lambda: None,
    )
    return list(box.tools)
