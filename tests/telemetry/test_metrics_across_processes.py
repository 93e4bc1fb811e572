"""Counts of processes that live for one room add up exactly, killed ones included, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path

import pytest
from telemetry_support import files, scrape, total, until

from agent.telemetry.hub import MAX_SERIES, MetricsHub
from agent.telemetry.meter import SOCKET_VARIABLE, Meter

SWARM = Path(__file__).with_name("swarm.py")


async def _swarm(count: int, seed: int) -> dict[str, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SWARM), str(count), str(seed), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    counted: dict[str, int] = json.loads(out)
    return counted


async def test_five_hundred_processes_add_up_exactly_though_many_are_killed(tmp_path: Path) -> None:
    async with MetricsHub(tmp_path) as hub:
        counted = await _swarm(500, seed=7)
        samples = await until(
            hub, lambda found: total(found, "toy_visits_finished_total") >= counted["ended"] + counted["lost"]
        )
        assert counted["started"] == 500
        assert counted["lost"] > 200
        shown = {
            "started": total(samples, "toy_visits_started_total"),
            "cache": total(samples, "toy_service_cache_total"),
            "greeting": total(samples, "toy_greeting_seconds_count"),
            "turn": total(samples, "toy_turn_seconds_count"),
            "api": total(samples, "toy_api_calls_total"),
            "ended": total(samples, "toy_visits_finished_total", outcome="ended"),
            "lost": total(samples, "toy_visits_finished_total", outcome="lost"),
        }
        assert shown == counted
        assert total(samples, "toy_greeting_seconds_sum") == pytest.approx(counted["greeting"] * 0.25)
        assert total(samples, "toy_greeting_seconds_count", room="first") <= 1
        assert total(samples, "toy_metric_records_total", result="refused") == 0
        assert len(files(tmp_path)) == 1
        assert not hub._connections
    assert files(tmp_path) == set()
    assert SOCKET_VARIABLE not in os.environ


async def test_a_folder_with_a_long_name_serves_as_well(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40) / ("er" * 60)
    async with MetricsHub(folder) as hub:
        counted = await _swarm(5, seed=1)
        samples = await until(hub, lambda found: total(found, "toy_visits_finished_total") == 5)
        assert total(samples, "toy_visits_started_total") == counted["started"]
    assert files(folder) == set()


@pytest.mark.parametrize("folder", ["short", "long/" * 40])
async def test_sockets_of_killed_workers_are_removed_and_those_of_living_ones_stay(tmp_path: Path, folder: str) -> None:
    (place := tmp_path / folder).mkdir(parents=True)
    with contextlib.chdir(place), socket.socket(socket.AF_UNIX) as dead:  # by a short name
        dead.bind("metrics-1.sock")
    async with MetricsHub(place) as elsewhere:  # of another container, say, with the same process id
        address = os.environ[SOCKET_VARIABLE]
        async with MetricsHub(place):
            assert len(files(place)) == 2
            assert os.environ[SOCKET_VARIABLE] != address
        _, writer = await asyncio.open_unix_connection(address)
        writer.write(b'["v","job-1"]\n')
        await until(elsewhere, lambda found: total(found, "toy_visits_started_total") == 1)
        writer.close()
    assert files(place) == set()


@pytest.mark.parametrize(
    "record",
    [
        [],
        ["?"],
        ["c"],
        ["c", "toy_no_such_metric", {}, 1],
        ["c", "toy_turn_seconds", {}, 1],
        ["c", "toy_visits_started", {"mac": "68:25:dd:ba:39:78"}, 1],
        ["c", "toy_visits_started", {}, -1],
        ["c", "toy_visits_started", {}, "many"],
        ["c", "toy_visits_started", None, 1],
        ["o", "toy_turn_seconds", {}, "soon"],
        ["e", "a job that never began"],
        ["v"],
        "text",
        None,
    ],
    ids=repr,
)
async def test_a_record_that_is_none_is_counted_and_changes_nothing(tmp_path: Path, record: object) -> None:
    async with MetricsHub(tmp_path) as hub:
        before = await scrape(hub)
        reader, writer = await asyncio.open_unix_connection(os.environ[SOCKET_VARIABLE])
        writer.write(json.dumps(record).encode() + b"\n{broken\n" + b"\xff\n" + b'["v","job-1"]\n["e","job-1"]\n')
        await writer.drain()
        writer.close()
        after = await until(hub, lambda found: total(found, "toy_visits_finished_total") == 1)
        assert total(after, "toy_metric_records_total", result="refused") == 3
        assert total(after, "toy_visits_started_total") - total(before, "toy_visits_started_total") == 1
        assert total(after, "toy_turn_seconds_count") == 0
        del reader


async def test_a_line_without_an_end_is_cut_and_the_next_process_counts(tmp_path: Path) -> None:
    async with MetricsHub(tmp_path) as hub:
        address = os.environ[SOCKET_VARIABLE]
        _, flood = await asyncio.open_unix_connection(address)
        flood.write(b"x" * 1_000_000)
        await flood.drain()
        _, writer = await asyncio.open_unix_connection(address)
        writer.write(b'["v","job-1"]\n')
        samples = await until(hub, lambda found: total(found, "toy_visits_started_total") == 1)
        assert total(samples, "toy_metric_records_total", result="refused") >= 1
        flood.close()
        writer.close()


async def test_series_do_not_grow_without_bound(tmp_path: Path) -> None:
    async with MetricsHub(tmp_path) as hub:
        for number in range(MAX_SERIES * 3):
            hub.take(["c", "toy_provider_errors", {"kind": "voice", "provider": f"p{number}", "error": "E"}, 1])
        samples = await scrape(hub)
        series = [key for key in samples if key[0] == "toy_provider_errors_total"]
        assert len(series) == MAX_SERIES + 1
        assert total(samples, "toy_provider_errors_total") == MAX_SERIES * 3
        assert total(samples, "toy_provider_errors_total", provider="other") == MAX_SERIES * 2


async def test_records_wait_for_a_worker_that_does_not_read_and_all_arrive(tmp_path: Path) -> None:
    path = tmp_path / "busy.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    os.environ[SOCKET_VARIABLE] = str(path)
    meter = Meter()
    try:
        for _ in range(8_000):
            meter.count("toy_visits_started")
        assert 0 < meter.unsent < 8_000
        connection, _ = listener.accept()
        reading = asyncio.create_task(asyncio.to_thread(_read_lines, connection, 8_000))
        assert await asyncio.to_thread(meter.drain, 20)
        assert await reading == 8_000
        assert meter.lost == 0
    finally:
        del os.environ[SOCKET_VARIABLE]
        meter.close()
        listener.close()


def _read_lines(connection: socket.socket, count: int) -> int:
    got = b""
    with connection:
        connection.settimeout(20)
        while got.count(b"\n") < count and (data := connection.recv(65_536)):
            got += data
    assert all(json.loads(line) == ["c", "toy_visits_started", {}, 1] for line in got.splitlines())
    return got.count(b"\n")


def test_without_a_worker_measuring_costs_and_keeps_nothing() -> None:
    meter = Meter()
    assert SOCKET_VARIABLE not in os.environ
    for _ in range(100):
        meter.count("toy_visits_started")
    assert meter.unsent == 0


def test_a_worker_that_is_gone_is_no_error(tmp_path: Path) -> None:
    os.environ[SOCKET_VARIABLE] = str(tmp_path / "nobody.sock")
    meter = Meter()
    try:
        for _ in range(10_050):
            meter.count("toy_visits_started")
        assert meter.unsent == 10_000
        assert meter.lost == 50
    finally:
        del os.environ[SOCKET_VARIABLE]
