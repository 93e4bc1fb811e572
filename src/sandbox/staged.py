"""What is started in order and stopped in reverse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self


class Staged(ABC):
    """An async context manager whose `_start` puts all it starts on `_stack`: it ends with the block, and half of it
    never stays."""

    _stack: AsyncExitStack

    @abstractmethod
    async def _start(self) -> None:
        """Start everything."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:  # half of it must not stay, whatever stopped the rest, a cancellation included
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
