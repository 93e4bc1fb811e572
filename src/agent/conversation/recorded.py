"""The recorded sentences of a visit: said through its one track, whether there is a conversation or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from agent.device.link import DeviceLink
from agent.device.messages import speech_created
from agent.greeting.bank import Greeting
from agent.speaker.speaker import Speaker

log = structlog.get_logger(__name__)

PATIENCE = 15.0
"""Seconds for which a sentence may be late before nobody waits for it any more."""


class Recorded:
    """Says sentences by their purpose; `sentence` finds the one in the child's language, None where there is none.

    `on_said`, once set, is told the words of each.
    """

    def __init__(
        self,
        link: DeviceLink,
        speaker: Speaker,
        sentence: Callable[[str], Greeting | None],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._link = link
        self._speaker = speaker
        self._sentence = sentence
        self.patience = patience
        self.on_said: Callable[[str], None] | None = None

    async def say(self, purpose: str) -> None:
        """Say it after what is being said; returns when it was heard or stopped, at once where there is none.

        Where the device does not take it in time, that is logged and nobody waits on: what comes next must come.
        """
        greeting = self._sentence(purpose)
        if greeting is None:
            return
        before = self._speaker.unsaid
        heard = asyncio.get_running_loop().create_future()
        self._link.send(speech_created("say", user_initiated=False, created_at=time.time(), text=greeting.text or None))
        self._speaker.play(greeting.pcm, on_end=lambda *_: None if heard.done() else heard.set_result(None))
        if self.on_said is not None:
            self.on_said(greeting.text)
        done, _ = await asyncio.wait({heard}, timeout=before + greeting.duration + self.patience)
        if not done:
            log.warning("a recorded sentence was not heard in time", purpose=purpose)
