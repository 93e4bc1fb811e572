"""Real processes, killed at any moment: what was acknowledged arrives once by key and in order."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest
from outbox_support import Receiver

from agent.outbox.sqlite import SqliteOutbox

PROGRAM = str(Path(__file__).with_name("outbox_process.py"))


async def spawn(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, PROGRAM, *arguments, stdout=asyncio.subprocess.PIPE)


async def next_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().strip()


async def killed(process: asyncio.subprocess.Process) -> None:
    process.kill()
    async with asyncio.timeout(10):
        await process.communicate()


async def test_writers_killed_at_random_points_lose_nothing_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "outbox.db"

    async def visit(lane: str) -> int:
        """Three writers after one another, each killed after some lines; returns the last number acknowledged."""
        acknowledged = 0
        for _ in range(3):
            process = await spawn("write", str(path), lane, str(acknowledged + 1), "100000")
            for _ in range(chance.randint(1, 12)):
                acknowledged = int(await next_line(process))
            await killed(process)
        return acknowledged

    lanes = ["aa", "bb"]
    acknowledged = dict(zip(lanes, await asyncio.gather(*map(visit, lanes)), strict=True))
    store = SqliteOutbox(path)
    async with Receiver() as receiver:
        courier = await spawn("deliver", str(path), receiver.url)
        depth = store.stats(["chat"])["chat"].depth
        await receiver.until(lambda: receiver.total >= depth)
        await killed(courier)
        for lane in lanes:
            numbers = [int(text) for text in receiver.kept[lane]]
            # A line written but killed before its acknowledgement may have arrived as well; none is missing or twice.
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) >= acknowledged[lane]
    store.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_couriers_killed_among_faults_deliver_once_by_key_and_in_order(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "outbox.db"
    lanes = {"aa": 25, "bb": 25, "cc": 25}
    faults = ["ok"] * 12 + ["500", "429", "reset", "lost", "lost", "hang"]
    async with Receiver(faults=lambda lane, attempt: chance.choice(faults)) as receiver:
        writers = [await spawn("write", str(path), lane, "1", str(count)) for lane, count in lanes.items()]
        everything = sum(lanes.values())
        kills = 0
        while receiver.total < everything:
            couriers = [await spawn("deliver", str(path), receiver.url) for _ in range(2)]
            for courier in couriers:
                assert await next_line(courier) == "ready"
            if kills < 4:
                mark = receiver.requests + chance.randint(1, 15)
                await receiver.until(lambda mark=mark: receiver.requests >= mark or receiver.total >= everything)  # type: ignore[misc]
                kills += 1
            else:
                await receiver.until(lambda: receiver.total >= everything)
            await asyncio.gather(*map(killed, couriers))
        for writer in writers:
            async with asyncio.timeout(30):
                await writer.communicate()
        assert {lane: [int(text) for text in texts] for lane, texts in receiver.kept.items()} == {
            lane: list(range(1, count + 1)) for lane, count in lanes.items()
        }
        assert kills == 4
