"""The life of one visit: identify → connect and fetch side by side → greet → converse → persist."""

from __future__ import annotations

from livekit.agents import JobContext

from agent.console_visit import console_visit
from agent.visit import Visit


async def entrypoint(ctx: JobContext) -> None:
    """LiveKit's entrypoint. Returns when the conversation is up; the visit ends with the job."""
    if ctx.is_fake_job():
        await console_visit(ctx)
        return
    visit = Visit(ctx)
    ctx.proc.userdata["visit"] = visit
    await visit.run()


async def on_session_end(ctx: JobContext) -> None:
    """LiveKit's last call while the room is still there: persist and close, whatever `entrypoint` got to."""
    visit = ctx.proc.userdata.pop("visit", None)
    if isinstance(visit, Visit):
        await visit.aclose()
