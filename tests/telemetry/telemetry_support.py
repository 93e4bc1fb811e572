"""What tests of telemetry share."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.telemetry.hub import MetricsHub
from sandbox.device import Device
from sandbox.manager_api import ManagerApi
from sandbox.providers import ProviderServer
from sandbox.replies import Rules
from sandbox.world import World

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Samples:
    """Every sample of an exposition by its name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples with this name and these labels, whatever their other labels."""
    wanted = set(labels.items())
    return sum(value for (found, pairs), value in samples.items() if found == name and wanted <= set(pairs))


async def scrape(hub: MetricsHub) -> Samples:
    """What a scrape of this hub shows."""
    return parse((await hub.exposition()).decode())


async def until(hub: MetricsHub, condition: Callable[[Samples], bool], *, timeout: float = 20) -> Samples:
    """Scrape until the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while True:
            samples = await scrape(hub)
            if condition(samples):
                return samples


def files(folder: Path) -> set[str]:
    """Names in a folder."""
    return {path.name for path in folder.iterdir()}


def prometheus(name: str) -> str:
    """Path of `prometheus` or `promtool`; skips where Debian's package is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return found


SENTENCES = ("tell me about the moon", "what is your name")


@asynccontextmanager
async def talking_world(
    *, reply: str = "The moon is made of rock.", manager: ManagerApi | bool = True, **env: str
) -> AsyncIterator[World]:
    """A world with stand-ins for hearing, thinking and speaking; the recogniser always hears the first sentence."""
    script = Rules(otherwise=reply)
    async with ProviderServer(script=script, answers=[SENTENCES[0]]) as providers:
        settings = {
            "STT_BASE_URL": providers.v1,
            "LLM_BASE_URL": providers.v1,
            "TTS_BASE_URL": providers.v1,
            "OPENAI_API_KEY": "sk-a-secret-of-the-test",
            "MEM0_HOST": providers.url,
        }
        async with World(env={**settings, **env}, manager=manager) as world:
            yield world


async def talk(device: Device) -> None:
    """Hear the greeting to its end, say something, and hear the answer to its end."""
    await device.wait_for_sound(timeout=20)
    await device.wait_for_state("listening", timeout=30)
    before = len(device.messages)
    await device.say(SENTENCES[0])
    await device.wait_for_message("user_input_transcribed", after=before, timeout=30)
    answering = await device.wait_for_state("speaking", after=before, timeout=30)
    await device.wait_for_state("listening", after=device.messages.index(answering), timeout=30)
