"""A speaker without a room: somebody who listens to its track, and a watch on how much has been said."""

from __future__ import annotations

import asyncio
from typing import Any


class Listener:
    """A room's worth of one who listens to the track."""

    def __init__(self) -> None:
        self.local_participant = self

    async def publish_track(self, *_: Any) -> Listener:
        return self

    async def wait_for_subscription(self) -> None: ...


class Watch:
    """Silent media that notices when so much speech has been mixed since it began."""

    def __init__(self) -> None:
        self.sounding = False
        self.left = 0
        self.reached = asyncio.Event()

    def pull(self, samples: int) -> None:
        if self.sounding:
            self.left -= samples
            if self.left <= 0:
                self.reached.set()

    def give_back(self, samples: int) -> None: ...

    def duck(self, on: bool) -> None: ...
