"""The session that talks: built behind the greeting, wired to device, history and memory, closed before the room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from livekit.agents import AgentSession
from livekit.agents.llm import ChatContext, ChatMessage, Tool
from livekit.agents.vad import VAD
from livekit.agents.voice import (
    AgentFalseInterruptionEvent,
    AgentStateChangedEvent,
    ConversationItemAddedEvent,
    SpeechCreatedEvent,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
)

from agent.briefing.memory import Recollection
from agent.briefing.profile import Briefing, ChatType
from agent.briefing.prompt import Prompt
from agent.conversation.companion import Companion
from agent.conversation.control_words import Control
from agent.conversation.ear import Ear
from agent.conversation.emotion import Emotion
from agent.conversation.history import ChatHistory
from agent.conversation.playback import Playback
from agent.conversation.presence import Presence
from agent.conversation.providers import Providers
from agent.conversation.recorded import PATIENCE, Recorded
from agent.conversation.turn_taking import session_options
from agent.device.link import DeviceLink
from agent.device.messages import (
    Outgoing,
    agent_false_interruption,
    emotion,
    speech_created,
    user_input_transcribed,
)
from agent.errors import AllProvidersFailed
from agent.greeting.bank import Greeting
from agent.settings import Settings
from agent.speaker.ambience import Ambience
from agent.speaker.speaker import Speaker

if TYPE_CHECKING:
    from agent.conversation.mcp_tools import McpTools

log = structlog.get_logger(__name__)

APOLOGY_PAUSE = 8.0
"""Seconds between two recorded apologies: a child that goes on talking is not told every time."""
GOODBYE_DEADLINE = 4.0
"""Seconds within which a goodbye of the model's own must begin to sound; else the recorded one does."""
INTERRUPTED_WITHIN = 1.0
"""Seconds in which a reply that was given up has left the speaker."""
FACE = (
    "When a reply begins with an emoji, the toy shows it as its face: it stands in the reply's text alone, and you "
    "never say, describe or act it out."
)
"""For a model that speaks itself, whose emoji nobody can take out before it is spoken."""
GREET = "Greet the child now, warmly and in one short sentence. If you remember something about it, show it."


@dataclass
class Scene:
    """What a conversation needs of its visit."""

    settings: Settings
    link: DeviceLink
    presence: Presence
    ear: Ear
    speaker: Speaker
    playback: Playback
    history: ChatHistory
    providers: Providers | None
    vad: VAD | None
    recorded: Recorded
    mark: Callable[[str], float]
    spawn: Callable[[Coroutine[Any, Any, Any], str], object]
    """Runs a task that the visit supervises."""


class Conversation:
    """One session in one room. `start` once; `aclose` is safe whatever was reached.

    Without providers the child hears the recorded apology when it has spoken: words, never silence.
    """

    def __init__(self, scene: Scene, briefing: Briefing, *, language: str | None) -> None:
        self._scene = scene
        self._language = language
        self._companion: Companion | None = None
        self._mcp: McpTools | None = None
        self._emotion: Emotion | None = None
        self._speech: Outgoing | None = None
        self._ambience = Ambience(on_wake=scene.speaker.wake) if scene.settings.background_audio else None
        self._realtime = scene.settings.conversation_mode == "realtime"
        self._apologised_at = float("-inf")
        self._parting = False
        self.started = False
        """Whether the session listens and answers."""
        self.apologies = 0
        scene.recorded.on_said = lambda text: scene.history.say(ChatType.AGENT, text)
        age = briefing.child.age if briefing.child is not None else None
        options = session_options(scene.settings, age=age, realtime=self._realtime)
        models = self._models(briefing, language)
        self.able = bool(models)
        if not self.able:
            options["turn_handling"] = {"turn_detection": "vad"}
        self.session: AgentSession[None] = AgentSession(**{**options, "vad": scene.vad, **models})

    def _models(self, briefing: Briefing, language: str | None) -> dict[str, Any]:
        providers, vad = self._scene.providers, self._scene.vad
        if providers is None:
            return {}
        if self._realtime:
            return {
                "llm": providers.realtime(voice=briefing.voice, language=language, on_lost_reply=self._reply_again),
                "vad": None,
            }
        if vad is None:
            return {}
        pipeline = providers.pipeline(vad, voice=briefing.voice, language=language)
        return {"stt": pipeline.stt, "llm": pipeline.llm, "tts": pipeline.tts}

    async def start(
        self,
        prompt: Prompt,
        *,
        greeting: Greeting | None,
        earlier: ChatContext | None = None,
        tools: Sequence[Tool] = (),
        recollection: Recollection | None = None,
    ) -> None:
        """Listen and answer. The greeting is in the context as what the agent has said; without one the model greets.

        `earlier` is the conversation of a visit that goes on.
        """
        scene, session = self._scene, self.session
        session.input.audio = scene.ear
        session.output.audio = scene.speaker
        scene.speaker.on("playback_started", self._on_sounding)
        session.on("agent_state_changed", self._on_state)
        session.on("user_state_changed", self._on_user_state)
        session.on("speech_created", self._on_speech)
        session.on("user_input_transcribed", self._on_transcript)
        session.on("conversation_item_added", self._on_item)
        session.on("agent_false_interruption", self._on_false_interruption)
        context = earlier.copy() if earlier is not None else ChatContext.empty()
        if greeting is not None and greeting.text:
            context.add_message(role="assistant", content=greeting.text)
            scene.history.say(ChatType.AGENT, greeting.text)
        companion = self._companion = Companion(
            self._instructions(prompt),
            context=context,
            tools=tools,
            recollection=recollection,
            language=self._language,
            is_control=lambda words: self._control(words) is not None,
            on_emotion=self._on_emotion,
            realtime=self._realtime,
        )
        if self._ambience is not None:
            scene.speaker.attach_ambience(self._ambience)
        await session.start(companion, record=False, session_host=False)
        self.started = True
        if self.able and scene.settings.mcp_servers:
            # Half a second of imports, and only some need it; the forkserver has made them by now.
            from agent.conversation.mcp_tools import McpTools

            self._mcp = McpTools(scene.settings.mcp_servers)
            scene.spawn(self._join_tools(companion, self._mcp), "MCP tools")
        if greeting is None and self.able:
            session.generate_reply(instructions=GREET)

    async def _join_tools(self, companion: Companion, servers: McpTools) -> None:
        if tools := await servers.fetch():
            await companion.update_tools([*companion.tools, *tools])

    async def instruct(self, prompt: Prompt) -> None:
        """Talk by this prompt from now on."""
        if self._companion is not None:
            await self._companion.update_instructions(self._instructions(prompt))

    def _instructions(self, prompt: Prompt) -> str:
        return f"{FACE}\n\n{prompt.text}" if self._realtime else prompt.text

    @property
    def context(self) -> ChatContext:
        """What has been said."""
        return self.session.history

    def stop(self) -> None:
        """Silence what is being said and give up what is being thought, at once."""
        if self.started:
            self.session.interrupt(force=True)

    async def goodbye(self, words: str | None) -> None:
        """Say a short goodbye: the model's own where it begins in time, else the recorded one; returns when heard."""
        if self.able and self.started and words:
            self._parting = True
            handle = self.session.generate_reply(instructions=words, allow_interruptions=False)
            waiting = asyncio.ensure_future(handle.wait_for_playout())
            started = asyncio.ensure_future(self._until_speaking())
            try:
                await asyncio.wait({waiting, started}, timeout=GOODBYE_DEADLINE, return_when=asyncio.FIRST_COMPLETED)
                if started.done():
                    await asyncio.wait({waiting}, timeout=PATIENCE)
                    return
                if not waiting.done():
                    handle.interrupt(force=True)
                    # Its end clears the speaker: what is said next must come after it.
                    await asyncio.wait({waiting}, timeout=INTERRUPTED_WITHIN)
            finally:
                self._parting = False
                started.cancel()
                waiting.cancel()
        await self._scene.recorded.say("goodbye")

    def apologise(self, error: AllProvidersFailed | None = None) -> None:
        """Nobody can answer: the recorded apology, at most once in APOLOGY_PAUSE seconds, and none for a goodbye."""
        now = time.monotonic()
        if self._parting or now - self._apologised_at < APOLOGY_PAUSE:
            return
        self._apologised_at = now
        self.apologies += 1
        log.error("nobody can answer the child", reason=str(error) if error else "no provider is configured")
        self._scene.spawn(self._apologise(), "apology")

    async def _apologise(self) -> None:
        # Replies are prepared while the child may still talk: nobody talks into its sentence.
        waited = 0.0
        while self.session.user_state == "speaking" and waited < APOLOGY_PAUSE:
            await asyncio.sleep(0.1)
            waited += 0.1
        await self._scene.recorded.say("provider_down")

    async def aclose(self) -> None:
        """End the session."""
        self.started = False
        self._scene.speaker.off("playback_started", self._on_sounding)
        try:
            await self.session.aclose()
        finally:
            if self._mcp is not None:
                await self._mcp.aclose()

    def _reply_again(self) -> None:
        self.session.generate_reply()

    async def _until_speaking(self) -> None:
        speaking = asyncio.Event()

        def on_state(event: AgentStateChangedEvent) -> None:
            if event.new_state == "speaking":
                speaking.set()

        self.session.on("agent_state_changed", on_state)
        try:
            await speaking.wait()
        finally:
            self.session.off("agent_state_changed", on_state)

    # The session's events

    def _on_state(self, event: AgentStateChangedEvent) -> None:
        self._scene.presence.session_state(event.new_state)
        self._scene.playback.agent_state(event.new_state)
        if self._ambience is not None:
            self._ambience.thinking(event.new_state == "thinking")
        if event.new_state == "speaking":
            self._scene.mark("first_answer")

    def _on_emotion(self, found: Emotion | None) -> None:
        self._emotion = found
        if self._realtime:
            self._show_emotion()  # nothing is prepared here, and the sound may have come first

    def _on_sounding(self, *_: object) -> None:
        """A reply begins to sound: only now, because replies are prepared that are never said."""
        speech, self._speech = self._speech, None
        if speech is not None:
            self._scene.link.send(speech)
        self._show_emotion()

    def _show_emotion(self) -> None:
        found, self._emotion = self._emotion, None
        if found is not None:
            self._scene.link.send(emotion(found.emoji, found.name))

    def _on_user_state(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            self._scene.mark("first_speech")  # or a noise: VisitRecord tells of words
            self._scene.playback.child_speaking(True)
        elif event.old_state == "speaking":
            self._scene.playback.child_speaking(False)
            if not self.able:
                self.apologise()

    def _on_speech(self, event: SpeechCreatedEvent) -> None:
        self._speech = speech_created(event.source, user_initiated=event.user_initiated, created_at=event.created_at)

    def _on_transcript(self, event: UserInputTranscribedEvent) -> None:
        if not event.is_final or not event.transcript.strip():
            return
        # A child that talks into a recorded sentence has heard enough of it.
        self._scene.speaker.stop_recorded()
        self._scene.link.send(
            user_input_transcribed(event.transcript, is_final=True, language=str(event.language or "") or None)
        )
        control = self._control(event.transcript)
        if control is None:
            self._scene.playback.child_said()
            return
        if control is Control.STOP or self._realtime:
            self._scene.speaker.stop_speech()
            self.stop()
        self._scene.playback.control(control)

    def _control(self, words: str) -> Control | None:
        return self._scene.playback.understand(words, self._language)

    def _on_item(self, event: ConversationItemAddedEvent) -> None:
        if isinstance(event.item, ChatMessage):
            self._scene.history.add(event.item)

    def _on_false_interruption(self, event: AgentFalseInterruptionEvent) -> None:
        self._scene.link.send(agent_false_interruption(resumed=event.resumed))
