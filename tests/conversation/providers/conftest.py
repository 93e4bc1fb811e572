"""Two servers full of stand-ins, a detector that can be driven, and settings that point at them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent.settings import Settings
from sandbox.providers import ProviderServer
from sandbox.voices import hum

MakeSettings = Callable[..., Settings]


@pytest.fixture
async def main() -> AsyncIterator[ProviderServer]:
    async with ProviderServer(answers=["hello there"], voice=hum(220)) as server:
        yield server


@pytest.fixture
async def standby() -> AsyncIterator[ProviderServer]:
    async with ProviderServer(answers=["hello there"], voice=hum(880)) as server:
        yield server


@pytest.fixture
def make_settings(main: ProviderServer, standby: ProviderServer) -> MakeSettings:
    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {
            "llm_base_url": main.v1,
            "stt_base_url": main.v1,
            "tts_base_url": main.v1,
            "realtime_base_url": main.v1,
            "fallback_openai_base_url": standby.v1,
            **changes,
        }
        return Settings(_env_file=None, **values)  # type: ignore[call-arg]

    return make
