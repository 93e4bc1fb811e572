"""The session that talks: built behind the greeting, wired to the device, closed before the room."""

from __future__ import annotations

from typing import Protocol

from livekit.agents import Agent, AgentSession
from livekit.agents.llm import ChatContext
from livekit.agents.voice import AgentStateChangedEvent, SpeechCreatedEvent, UserInputTranscribedEvent

from agent.briefing.profile import Briefing
from agent.conversation.ear import Ear
from agent.conversation.presence import Presence
from agent.device.link import DeviceLink
from agent.device.messages import speech_created, user_input_transcribed
from agent.greeting.bank import Greeting
from agent.speaker.speaker import Speaker


class Scene(Protocol):
    """What a conversation needs of its visit."""

    link: DeviceLink
    presence: Presence
    ear: Ear
    speaker: Speaker
    briefing: Briefing | None
    greeting: Greeting | None


class Conversation:
    """One session in one room. `start` once; `aclose` is safe whatever was reached."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.session: AgentSession[None] = AgentSession()

    async def start(self) -> None:
        """Start listening and answering; the greeting is in the context as what the agent has said."""
        scene, session = self._scene, self.session
        session.input.audio = scene.ear
        session.output.audio = scene.speaker
        session.on("agent_state_changed", self._on_state)
        session.on("speech_created", self._on_speech)
        session.on("user_input_transcribed", self._on_transcript)
        context = ChatContext.empty()
        if scene.greeting is not None and scene.greeting.text:
            context.add_message(role="assistant", content=scene.greeting.text)
        await session.start(Agent(instructions="", chat_ctx=context), record=False, session_host=False)

    def stop(self) -> None:
        """Silence what is being said, at once."""
        self.session.interrupt(force=True)

    async def aclose(self) -> None:
        """End the session."""
        await self.session.aclose()

    def _on_state(self, event: AgentStateChangedEvent) -> None:
        self._scene.presence.session_state(event.new_state)

    def _on_speech(self, event: SpeechCreatedEvent) -> None:
        self._scene.link.send(
            speech_created(event.source, user_initiated=event.user_initiated, created_at=event.created_at)
        )

    def _on_transcript(self, event: UserInputTranscribedEvent) -> None:
        if event.is_final:
            self._scene.link.send(
                user_input_transcribed(event.transcript, is_final=True, language=str(event.language or "") or None)
            )
