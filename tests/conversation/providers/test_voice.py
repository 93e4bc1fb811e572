from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from livekit.agents import APIConnectionError
from livekit.plugins import elevenlabs, openai

from agent.conversation.standby import Lineup
from agent.conversation.voice import SAMPLE_RATE, SteadyTTS
from agent.errors import AllProvidersFailed
from sandbox.faults import Fault
from sandbox.providers import ProviderServer

TEXT = "Well hello, my little friend. Today we shall go into the dark forest and look for the sleeping bear together."


class Scene:
    def __init__(self, clients: list[object]) -> None:
        self.failures: list[AllProvidersFailed] = []
        self.voice = SteadyTTS(
            Lineup("voice", [(str(i), client) for i, client in enumerate(clients)]),
            on_failed=self.failures.append,
            patience=1.0,
            deadline=1.5,
            sound_gap=0.3,
        )

    async def speak(self, text: str = TEXT) -> np.ndarray:
        parts = []
        async with self.voice.stream() as stream:
            for i in range(0, len(text), 5):
                stream.push_text(text[i : i + 5])
            stream.end_input()
            async for audio in stream:
                parts.append(np.frombuffer(audio.frame.data, dtype=np.int16))
        return np.concatenate(parts)


def seconds_of(sound: np.ndarray, pitch: float) -> float:
    """How long the voice with this note is heard."""
    window = SAMPLE_RATE // 20
    heard = 0
    for start in range(0, len(sound) - window, window):
        spectrum = np.abs(np.fft.rfft(sound[start : start + window].astype(float)))
        if spectrum.max() > 1e4 and abs(int(spectrum.argmax()) * SAMPLE_RATE / window - pitch) < 60:
            heard += 1
    return heard * window / SAMPLE_RATE


@pytest.fixture
def scene(main: ProviderServer, standby: ProviderServer) -> Scene:
    return Scene(
        [
            openai.TTS(model="gpt-4o-mini-tts", voice="nova", base_url=s.v1, api_key="x", response_format="pcm")
            for s in (main, standby)
        ]
    )


def assert_only_ends(begun: list[Any], continued: list[Any]) -> None:
    """What the second voice was asked for: what the first had not said of a phrase, from a word's beginning, or all."""
    phrases = [call.text.strip() for call in begun]
    assert continued
    for call in continued:
        assert any(f" {phrase}".endswith(f" {call.text}") for phrase in phrases) or f" {TEXT} ".count(f" {call.text} ")
    assert any(call.text not in phrases for call in continued)


WHOLE = len(TEXT) * 0.06


async def test_speaks_phrase_by_phrase_in_order_beginning_with_the_first_clause(
    scene: Scene, main: ProviderServer
) -> None:
    sound = await scene.speak()
    assert len(sound) / SAMPLE_RATE == pytest.approx(WHOLE, rel=0.05)
    texts = sorted((call.text for call in main.speech.calls), key=TEXT.index)  # two are asked for at once
    assert texts[0] == "Well hello,"
    assert " ".join(texts) == TEXT


@pytest.mark.parametrize("fault", [f for f in Fault if f is not Fault.NONSENSE])
async def test_every_fault_at_the_beginning_is_covered(scene: Scene, main: ProviderServer, fault: Fault) -> None:
    main.speech.behaviour.fail(fault, after=0)
    sound = await scene.speak()
    assert seconds_of(sound, 880) == pytest.approx(WHOLE, rel=0.1)
    assert scene.failures == []


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, Fault.TRUNCATE])
async def test_a_sentence_that_breaks_off_is_finished_by_the_other_voice(
    scene: Scene, main: ProviderServer, standby: ProviderServer, fault: Fault
) -> None:
    main.speech.behaviour.fail(fault, after=8)
    sound = await scene.speak()
    first, second = seconds_of(sound, 220), seconds_of(sound, 880)
    assert first > 0.5
    assert first + second == pytest.approx(WHOLE, abs=1.0)
    assert_only_ends(main.speech.calls, standby.speech.calls)


@pytest.mark.parametrize(
    "phrase",
    ["今天我们要一起走进黑暗的大森林里去寻找那只正在睡觉的小熊", "วันนี้เราจะเดินเข้าไปในป่าใหญ่เพื่อตามหาหมีน้อยที่กำลังนอนหลับ"],
)
async def test_a_phrase_without_spaces_is_resumed_at_the_character_it_broke_off_at(
    scene: Scene, main: ProviderServer, standby: ProviderServer, phrase: str
) -> None:
    main.speech.behaviour.fail(Fault.STALL, after=16)
    await scene.speak(phrase)
    [rest] = [call.text for call in standby.speech.calls]
    assert phrase.endswith(rest)
    assert 1 < len(rest) < len(phrase)


async def test_when_no_voice_is_left_the_hook_hears_it(
    scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    await main.stop()
    standby.speech.behaviour.fail(Fault.ERROR)
    with pytest.raises(APIConnectionError):
        await scene.speak()
    assert [failure.kind for failure in scene.failures] == ["voice"]


async def test_what_nobody_can_say_is_no_failure(scene: Scene, main: ProviderServer) -> None:
    await scene.speak("… !?")
    assert main.speech.calls == []
    assert scene.failures == []


async def test_whole_texts_are_spoken_too(scene: Scene) -> None:
    seconds = 0.0
    async with scene.voice.synthesize(TEXT) as stream:
        async for audio in stream:
            seconds += audio.frame.duration
    assert seconds == pytest.approx(WHOLE, rel=0.05)


@pytest.fixture
async def eleven(main: ProviderServer, standby: ProviderServer) -> AsyncIterator[Scene]:
    async with aiohttp.ClientSession() as http:
        voice = elevenlabs.TTS(api_key="x", base_url=main.v1, encoding="pcm_24000", http_session=http)
        other = openai.TTS(model="tts-1", voice="nova", base_url=standby.v1, api_key="x", response_format="pcm")
        yield Scene([voice, other])
        await voice.aclose()


async def test_elevenlabs_speaks_over_one_socket(eleven: Scene, main: ProviderServer) -> None:
    sound = await eleven.speak()
    assert len(sound) / SAMPLE_RATE == pytest.approx(WHOLE, rel=0.08)
    assert main.elevenlabs.connections == 1


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, Fault.TRUNCATE])
async def test_elevenlabs_is_replaced_at_the_word_its_alignment_names(
    eleven: Scene, main: ProviderServer, standby: ProviderServer, fault: Fault
) -> None:
    main.elevenlabs.behaviour.fail(fault, after=8)
    sound = await eleven.speak()
    assert seconds_of(sound, 220) + seconds_of(sound, 880) == pytest.approx(WHOLE, abs=1.0)
    assert_only_ends(main.elevenlabs.contexts, standby.speech.calls)


@pytest.mark.parametrize("fault", list(Fault))
async def test_every_fault_of_elevenlabs_at_the_beginning_is_covered(
    eleven: Scene, main: ProviderServer, fault: Fault
) -> None:
    main.elevenlabs.behaviour.fail(fault, after=0)
    sound = await eleven.speak()
    assert seconds_of(sound, 880) == pytest.approx(WHOLE, rel=0.1)
