"""Request to first sound of a song on a slow, distant source: `python -m sandbox.bench_media [--rounds N]`."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import numpy as np
from yarl import URL

from agent.speaker.media_http import MediaHttp
from agent.speaker.media_source import MediaSource
from agent.speaker.media_url import HttpLocation
from agent.speaker.pcm import SAMPLE_RATE
from sandbox.audio import sweep
from sandbox.media_files import encode
from sandbox.media_server import MediaServer

_FORMS = ("mp3", "m4a", "m4a-end", "opus", "wav", "flac")


async def first_sound(http: MediaHttp, url: str) -> float:
    """Milliseconds from asking for a file until its first sample can be pulled."""
    begun = time.perf_counter()
    async with MediaSource.open(HttpLocation(URL(url)), http) as source:
        await source.ready()
        if source.read(480) is None:
            raise RuntimeError("ready, but nothing to read")
        return (time.perf_counter() - begun) * 1000


async def measure(rounds: int, latency: float, bandwidth: float) -> dict[tuple[str, str], list[float]]:
    """Samples by (format, cold or warm connection), the formats taking turns."""
    sound = sweep(30, SAMPLE_RATE)
    found: dict[tuple[str, str], list[float]] = {}
    async with MediaServer(latency=latency, bandwidth=bandwidth) as server:
        for form in _FORMS:
            server.files[f"/{form}"] = await asyncio.to_thread(encode, sound, form)
        for _ in range(rounds):
            for form in _FORMS:
                for state in ("cold", "warm"):
                    http = MediaHttp(server.url)
                    if state == "warm":
                        await http.warm()
                    found.setdefault((form, state), []).append(await first_sound(http, f"{server.url}/{form}"))
                    await http.aclose()
    return found


def main() -> None:
    """Print a table of medians and 95th percentiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--latency", type=float, default=0.1, help="round trip in seconds; a new connection costs one")
    parser.add_argument("--bandwidth", type=float, default=1_000_000, help="bit/s")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rounds, options.latency, options.bandwidth))
    print(f"request to first sound, {options.latency * 1000:g} ms, {options.bandwidth / 1e6:g} Mbit/s, ms")
    print(f"{'format':10}{'connection':12}{'n':>4}{'median':>9}{'p95':>9}")
    for (form, state), values in found.items():
        p95 = float(np.percentile(values, 95))
        print(f"{form:10}{state:12}{len(values):>4}{statistics.median(values):>9.0f}{p95:>9.0f}")


if __name__ == "__main__":
    main()
