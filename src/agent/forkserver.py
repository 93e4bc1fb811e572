"""Imported once by the forkserver: what it loads is shared copy-on-write by every job process.

Nothing here may start a thread, an event loop or WebRTC, and nothing may raise: that would end the forkserver.
"""

from __future__ import annotations

import sys

from agent import process, room  # noqa: F401 — the room's modules are imported here so that no room pays for them
from agent.errors import ToyError

try:
    if process.shared().settings.redis_url is not None:
        # No visit pays for these either.
        import agent.briefing.cache_redis
        import agent.conversation.resume_redis
        import agent.outbox.redis
        import agent.telemetry.cost_redis  # noqa: F401
except ToyError as error:
    # The worker has already refused wrong settings; the processes will say the same when they try again.
    sys.stderr.write(f"{error}\n")
