"""A visit without a room: the console's, with the framework's own microphone, speaker or keyboard."""

from __future__ import annotations

from livekit.agents import AgentSession, JobContext
from livekit.agents.llm import ChatContext

from agent.briefing.prompt import PromptWriter
from agent.conversation.companion import Companion
from agent.conversation.conversation import GREET
from agent.conversation.turn_taking import session_options
from agent.errors import AllProvidersFailed, SettingsError
from agent.process import Kit


async def console_visit(ctx: JobContext) -> None:
    """Start a session with the default prompt; the framework connects it to the console."""
    shared = Kit.of(ctx.proc).shared
    if shared.plan is None or shared.vad is None or shared.plan.problems:
        problems = shared.plan.problems if shared.plan is not None else tuple(shared.problems.values())
        raise SettingsError("\n".join(problems))

    def on_failed(error: AllProvidersFailed) -> None:
        ctx.shutdown(str(error))

    providers = shared.plan.open(on_failed=on_failed)

    async def close(_reason: str) -> None:
        await providers.aclose()

    ctx.add_shutdown_callback(close)
    providers.warm()
    writer = shared.writer or PromptWriter(token_budget=shared.settings.prompt_token_budget)
    language = shared.settings.greeting_language
    pipeline = providers.pipeline(shared.vad, language=language)
    session: AgentSession[None] = AgentSession(
        stt=pipeline.stt,
        llm=pipeline.llm,
        tts=pipeline.tts,
        vad=shared.vad,
        **session_options(shared.settings, age=None),
    )
    companion = Companion(writer.write(None, language=language).text, context=ChatContext.empty())
    await session.start(companion, record=False)
    session.generate_reply(instructions=GREET)
