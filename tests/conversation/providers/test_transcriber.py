from __future__ import annotations

import asyncio

import numpy as np
import pytest
from livekit.agents.stt import SpeechEvent, SpeechEventType
from livekit.agents.vad import VAD
from livekit.plugins import openai
from provider_speech import frames, quiet, spoken

from agent.conversation.recogniser_languages import hint
from agent.conversation.standby import Lineup
from agent.conversation.transcriber import Transcriber
from agent.conversation.turn_taking import load_vad
from agent.errors import AllProvidersFailed
from sandbox.faults import Fault
from sandbox.providers import ProviderServer

DRAGON = "tell me a story about a dragon"
FINAL, PREFLIGHT = SpeechEventType.FINAL_TRANSCRIPT, SpeechEventType.PREFLIGHT_TRANSCRIPT


@pytest.fixture(scope="module")
def detector() -> VAD:
    return load_vad()


class Scene:
    def __init__(self, detector: VAD, *servers: ProviderServer) -> None:
        self.failures: list[AllProvidersFailed] = []
        self.speeches = 0
        clients = [(str(i), openai.STT(base_url=s.v1, api_key="x", language="en")) for i, s in enumerate(servers)]
        self.transcriber = Transcriber(
            Lineup("speech-to-text", clients),
            detector,
            on_failed=self.failures.append,
            on_speech=self._speech,
            patience=1.0,
            deadline=1.5,
        )

    def _speech(self) -> None:
        self.speeches += 1

    async def hear(self, *sounds: np.ndarray, until: int = 1) -> list[SpeechEvent]:
        """Everything said about the sounds, up to the given number of final transcripts, or failures."""
        stream = self.transcriber.stream()
        heard: list[SpeechEvent] = []

        async def listen() -> None:
            async for event in stream:
                heard.append(event)
                if sum(e.type == FINAL for e in heard) >= until:
                    return

        for frame in frames(*sounds):
            stream.push_frame(frame)
        listening = asyncio.create_task(listen())
        failing = asyncio.create_task(self._fails())
        await asyncio.wait([listening, failing], timeout=20, return_when=asyncio.FIRST_COMPLETED)
        for task in (listening, failing):
            task.cancel()
        await stream.aclose()
        return heard

    async def _fails(self) -> None:
        while not self.failures:
            await asyncio.to_thread(lambda: None)


@pytest.fixture
async def scene(detector: VAD, main: ProviderServer, standby: ProviderServer) -> Scene:
    for server in (main, standby):
        server.transcription.answers = [DRAGON]
    return Scene(detector, main, standby)


def texts(events: list[SpeechEvent], kind: SpeechEventType) -> list[str]:
    return [event.alternatives[0].text for event in events if event.type == kind]


async def test_a_sentence_is_transcribed_once_and_its_guess_becomes_the_transcript(
    scene: Scene, main: ProviderServer
) -> None:
    heard = await scene.hear(quiet(0.3), spoken(DRAGON), quiet(1.0))
    assert texts(heard, FINAL) == [DRAGON]
    # A guess in a gap between words may have been thrown away; the last one was used, and nothing asked again.
    assert scene.transcriber.guesses - scene.transcriber.stale_guesses == 1
    assert len(main.transcription.calls) <= scene.transcriber.guesses
    assert scene.speeches == 1
    order = [e.type for e in heard]
    assert (
        order.index(SpeechEventType.START_OF_SPEECH) < order.index(SpeechEventType.END_OF_SPEECH) < order.index(FINAL)
    )


async def test_the_guess_is_sent_before_the_silence_counts_as_an_end(scene: Scene, main: ProviderServer) -> None:
    speech = spoken(DRAGON)
    await scene.hear(quiet(0.3), speech, quiet(1.0))
    call = main.transcription.calls[-1]
    # An utterance cut at the detector's end of speech carries its silence of 200 ms; the guess less.
    assert call.seconds < len(speech) / 16000 + 0.3 + 0.3
    assert call.seconds > len(speech) / 16000 - 0.1


async def test_a_short_pause_makes_a_stale_guess_and_one_whole_transcript(scene: Scene, main: ProviderServer) -> None:
    heard = await scene.hear(quiet(0.3), spoken("tell me a story"), quiet(0.19), spoken("about a dragon"), quiet(1.0))
    assert texts(heard, FINAL) == [DRAGON]
    assert main.transcription.calls[-1].seconds > 2.0


async def test_two_sentences_come_in_order_though_the_first_takes_longer(scene: Scene, main: ProviderServer) -> None:
    main.transcription.answers = ["hello", "goodbye"]
    heard = await scene.hear(
        quiet(0.3), spoken("hello who are you"), quiet(0.8), spoken("good night"), quiet(1), until=2
    )
    assert texts(heard, FINAL) == ["hello", "goodbye"]


@pytest.mark.parametrize("fault", list(Fault))
async def test_no_fault_of_one_provider_loses_the_sentence(scene: Scene, main: ProviderServer, fault: Fault) -> None:
    main.transcription.behaviour.fail(fault)
    heard = await scene.hear(quiet(0.3), spoken(DRAGON), quiet(1.0))
    assert texts(heard, FINAL) == [DRAGON]
    assert scene.failures == []


async def test_when_nobody_can_transcribe_the_hook_hears_it_and_the_next_sentence_works(
    scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    main.transcription.behaviour.fail(Fault.ERROR)
    standby.transcription.behaviour.fail(Fault.HANG)
    heard = await scene.hear(quiet(0.3), spoken(DRAGON), quiet(1.0))
    assert texts(heard, FINAL) == []
    assert scene.failures[0].kind == "speech-to-text"
    main.transcription.behaviour.heal()
    scene.failures.clear()
    assert texts(await scene.hear(quiet(0.3), spoken(DRAGON), quiet(1.0)), FINAL) == [DRAGON]


async def test_no_words_make_no_transcript(scene: Scene, main: ProviderServer) -> None:
    main.transcription.answers = [" ", DRAGON]
    heard = await scene.hear(quiet(0.3), spoken("hello who are you"), quiet(0.8), spoken(DRAGON), quiet(1.0))
    assert texts(heard, FINAL) == [DRAGON]
    assert texts(heard, PREFLIGHT) in ([], [DRAGON])


async def test_an_answer_without_a_text_costs_its_sentence_and_not_the_ear(
    scene: Scene, main: ProviderServer, standby: ProviderServer
) -> None:
    main.transcription.textless = True
    assert texts(await scene.hear(quiet(0.3), spoken(DRAGON), quiet(1.0)), FINAL) == [DRAGON]
    standby.transcription.textless = True
    assert texts(await scene.hear(quiet(0.3), spoken(DRAGON), quiet(1.0)), FINAL) == []
    assert scene.failures[0].kind == "speech-to-text"


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("en", "en"), ("hi-IN", "hi"), ("zh_CN", "zh"), ("English", "en"), ("தமிழ்", "ta"), ("nb", "no"),
        ("or-IN", None), ("xx", None), ("cn", None), ("auto", None), ("unknown", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_recognisers_are_told_only_languages_they_know(language: str | None, told: str | None) -> None:
    assert hint(language) == told
