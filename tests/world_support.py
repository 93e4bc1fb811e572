"""How tests ask for a world of their own."""

from __future__ import annotations

from typing import Any, Protocol

from sandbox.world import World


class StartWorld(Protocol):
    """Starts a `World` with these options; it is stopped after the test."""

    async def __call__(self, **options: Any) -> World: ...
