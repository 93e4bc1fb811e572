"""How tests ask for a world of their own, and what its devices do there."""

from __future__ import annotations

from typing import Any, Final, Protocol

from sandbox.device import Device
from sandbox.providers import ProviderServer
from sandbox.replies import Rules
from sandbox.world import World

HELLO: Final = "hello there little friend"
AGAIN: Final = "tell me more"
ANSWERS: Final = {HELLO: "Hello my friend!", AGAIN: "There is more."}


class StartWorld(Protocol):
    """Starts a `World` with these options; it is stopped after the test."""

    async def __call__(self, **options: Any) -> World: ...


def small_talk() -> ProviderServer:
    """Providers that understand HELLO and AGAIN and give their ANSWERS."""
    script = Rules(said=[("hello", ANSWERS[HELLO]), ("more", ANSWERS[AGAIN])], otherwise="Oh.")
    return ProviderServer(script=script, sentences=[HELLO, AGAIN])


async def greeted(device: Device) -> None:
    """Wait for the greeting, to its end."""
    await device.wait_for_state("speaking", timeout=60)
    await device.wait_for_state("listening", timeout=30)


async def talk(device: Device, words: str) -> None:
    """Say it and hear the answer to its end."""
    before = len(device.messages)
    await device.say(words)
    await device.wait_for_message("speech_created", after=before, timeout=60)
    await device.wait_for_state("speaking", after=before, timeout=60)
    spoken = len(device.messages)
    await device.wait_for_state("listening", after=spoken, timeout=60)
