"""What listeners are told: in order, and never one call within another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class News:
    """Calls that wait until their teller is in a state to be asked back. `failed` is logged when one of them raises."""

    def __init__(self, logger: Any, failed: str) -> None:
        self._log = logger
        self._failed = failed
        self._waiting: deque[Callable[[], None]] = deque()
        self._telling = False

    def add(self, call: Callable[[], None]) -> None:
        """To be called by the next `tell`."""
        self._waiting.append(call)

    def tell(self) -> None:
        """Call all that wait, those that are added meanwhile too; within such a call it does nothing."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._waiting:
                call = self._waiting.popleft()
                try:
                    call()
                except Exception:  # noqa: BLE001 — a listener's bug must not silence the music
                    self._log.exception(self._failed)
        finally:
            self._telling = False
