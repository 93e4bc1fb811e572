from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
from media_support import QUICK, Reader, encoded, lag, noise, reading

from agent.errors import MediaError
from agent.speaker.media_bytes import HttpBytes, MediaLimits
from agent.speaker.media_http import MediaHttp
from agent.speaker.media_source import MediaSource
from agent.speaker.media_url import FileLocation
from agent.speaker.pcm import SAMPLE_RATE
from sandbox.faults import Fault
from sandbox.media_files import FORMATS, encode
from sandbox.media_server import MediaServer

LATER = 7 * SAMPLE_RATE + 333


@pytest.fixture
async def server() -> AsyncIterator[MediaServer]:
    async with MediaServer() as running:
        for form in FORMATS:
            running.files[f"/{form}"] = encoded(form)
        yield running


@pytest.fixture
async def http(server: MediaServer) -> AsyncIterator[MediaHttp]:
    client = MediaHttp(server.url, connect_timeout=0.2, answer_timeout=0.3)
    yield client
    await client.aclose()


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "media-decode"]


@pytest.mark.parametrize("form", FORMATS)
async def test_every_format_sounds_as_it_was_recorded(form: str, server: MediaServer, http: MediaHttp) -> None:
    async with reading(f"{server.url}/{form}", http) as reader:
        heard = await reader.all()
    late, likeness = lag(heard[: 5 * SAMPLE_RATE], noise()[: 5 * SAMPLE_RATE])
    # Without its tag an MP3 does not tell the encoder's delay of 25 ms.
    assert late == pytest.approx(601 if form == "mp3-bare" else 0, abs=2)
    assert likeness > 0.97
    assert len(heard) == pytest.approx(len(noise()), abs=1500)


@pytest.mark.parametrize("place", ["disk", "net"])
@pytest.mark.parametrize("form", FORMATS)
async def test_starts_at_the_very_sample_asked_for(
    form: str, place: str, server: MediaServer, http: MediaHttp, tmp_path: Path
) -> None:
    (tmp_path / form).write_bytes(encoded(form))
    async with reading(f"{server.url}/{form}", http) as reader:
        whole = await reader.all()
    if place == "net":
        async with reading(f"{server.url}/{form}", http, start=LATER) as reader:
            assert reader.source is not None
            heard = await reader.read(2 * SAMPLE_RATE)
            assert reader.source.position == LATER + 2 * SAMPLE_RATE
    else:
        reader = Reader()
        location = FileLocation(tmp_path, (form,))
        async with MediaSource.open(location, start=LATER, on_data=reader.wake) as reader.source:
            heard = await reader.read(2 * SAMPLE_RATE)
    late, likeness = lag(heard, whole[LATER : LATER + 2 * SAMPLE_RATE])
    assert abs(late) <= 1
    assert likeness > 0.9


@pytest.mark.parametrize("form", ["mp3", "mp3-bare", "mp3-vbr"])
async def test_marks_bring_an_mp3_back_in_one_request(form: str, server: MediaServer, http: MediaHttp) -> None:
    async with reading(f"{server.url}/{form}", http) as reader:
        assert reader.source is not None
        whole = await reader.all()
        marks = reader.source.marks()
    server.asked.clear()
    async with reading(f"{server.url}/{form}", http, start=LATER, marks=marks) as reader:
        heard = await reader.read(2 * SAMPLE_RATE)
    late, likeness = lag(heard, whole[LATER : LATER + 2 * SAMPLE_RATE])
    assert abs(late) <= 1
    assert likeness > 0.9


async def test_a_variable_bitrate_is_exact_with_marks_where_computing_is_not(
    server: MediaServer, http: MediaHttp
) -> None:
    quiet = (noise() * np.where(np.arange(len(noise())) < 4 * SAMPLE_RATE, 0.001, 1.0)).astype(np.int16)
    server.files["/uneven"] = encode(quiet, "mp3-vbr")
    async with reading(f"{server.url}/uneven", http) as reader:
        assert reader.source is not None
        whole = await reader.all()
        marks = reader.source.marks()
    async with reading(f"{server.url}/uneven", http, start=LATER, marks=marks) as reader:
        heard = await reader.read(2 * SAMPLE_RATE)
    assert abs(lag(heard, whole[LATER : LATER + 2 * SAMPLE_RATE])[0]) <= 1


async def test_sounds_before_the_download_has_ended(server: MediaServer, http: MediaHttp) -> None:
    server.behaviour.fail(Fault.STALL, after=4)
    async with reading(f"{server.url}/mp3", http, limits=MediaLimits(stall=30)) as reader:
        heard = await reader.read(SAMPLE_RATE // 2)
    assert len(heard) == SAMPLE_RATE // 2
    assert server.sent <= 4 * 4096 < len(encoded("mp3")) // 4


async def test_a_picture_in_front_of_the_sound_is_not_downloaded(server: MediaServer, http: MediaHttp) -> None:
    picture = bytes(4_000_000)
    size = len(picture)
    digits = bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    server.files["/cover"] = b"ID3\x04\x00\x00" + digits + picture + encoded("mp3-bare")
    async with reading(f"{server.url}/cover", http) as reader:
        heard = await reader.read(SAMPLE_RATE)
    assert len(heard) == SAMPLE_RATE
    assert server.sent < 1_000_000


async def test_ten_minutes_take_no_more_memory_than_ten_seconds(server: MediaServer, http: MediaHttp) -> None:
    server.files["/story"] = encoded("mp3-bare", 12.0) * 50
    async with reading(f"{server.url}/story", http) as reader:
        assert reader.source is not None
        remote = reader.source._bytes
        assert isinstance(remote, HttpBytes)
        count = 0
        while len(block := await reader.read(SAMPLE_RATE, step=4800)):
            count += len(block)
        assert count == pytest.approx(600 * SAMPLE_RATE, rel=0.01)
        assert remote.most_held < 1_200_000
        assert reader.source.most_buffered < 4 * SAMPLE_RATE


@pytest.mark.parametrize("ignore_range", [False, True])
@pytest.mark.parametrize("unsized", [False, True])
@pytest.mark.parametrize("form", ["mp3", "m4a-end", "opus"])
async def test_a_cut_source_goes_on_where_it_stopped(
    form: str, unsized: bool, ignore_range: bool, server: MediaServer, http: MediaHttp
) -> None:
    async with reading(f"{server.url}/{form}", http) as reader:
        whole = await reader.all()
    server.ignore_range, server.unsized = ignore_range, unsized
    server.cut_at, server.cuts = 50_000, 2
    async with reading(f"{server.url}/{form}", http) as reader:
        heard = await reader.all()
    assert server.cuts == 0
    assert np.array_equal(heard[: len(heard) - 2000], whole[: len(heard) - 2000])
    assert len(heard) == pytest.approx(len(whole), abs=2000)


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, Fault.ERROR, Fault.RATE_LIMIT, Fault.HANG])
async def test_a_passing_fault_is_not_heard(fault: Fault, server: MediaServer, http: MediaHttp) -> None:
    server.behaviour.fail(fault, times=2, after=3)
    async with reading(f"{server.url}/mp3", http) as reader:
        heard = await reader.all()
    assert len(heard) == pytest.approx(len(noise()), abs=1500)
    assert server.behaviour.faulted == 2


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, Fault.ERROR, Fault.HANG])
async def test_a_lasting_fault_is_an_error_after_bounded_retries(
    fault: Fault, server: MediaServer, http: MediaHttp
) -> None:
    server.behaviour.fail(fault, after=0)
    async with reading(f"{server.url}/mp3", http) as reader:
        with pytest.raises(MediaError, match="broken"):
            await reader.all()
    assert server.behaviour.requests == QUICK.attempts


async def test_what_was_fetched_before_a_lasting_fault_still_plays(server: MediaServer, http: MediaHttp) -> None:
    server.cut_at, server.cuts = 100_000, 1000
    async with reading(f"{server.url}/mp3", http) as reader:
        heard = await reader.read(5 * SAMPLE_RATE)
        with pytest.raises(MediaError, match="broken"):
            await reader.all()
    assert len(heard) == 5 * SAMPLE_RATE


async def test_a_missing_file_is_said_at_once(server: MediaServer, http: MediaHttp) -> None:
    async with reading(f"{server.url}/nowhere.mp3", http) as reader:
        assert reader.source is not None
        with pytest.raises(MediaError, match="404"):
            await reader.source.ready()
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>Not what you want</html>" * 1000,
        bytes(300_000),
        b"#EXTM3U\n#EXTINF:1\nhttp://127.0.0.1:9/secret\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
        b"OggS" + bytes(100_000),
        b"RIFF\xff\xff\xff\xffWAVE" + bytes(1000),
        b"fLaC" + bytes(100_000),
        b"\x00\x00\x00\x20ftypM4A " + b"\xff" * 100_000,
        b"\xff\xfb\x90\x64" * 30_000,
        np.random.default_rng(5).bytes(200_000),
    ],
    ids=["empty", "html", "zeros", "m3u8", "concat", "id3", "ogg", "wav", "flac", "mp4", "headers", "random"],
)
@pytest.mark.parametrize("place", ["disk", "net"])
async def test_nonsense_is_an_error(
    content: bytes, place: str, server: MediaServer, http: MediaHttp, tmp_path: Path
) -> None:
    server.files["/x"] = content
    (tmp_path / "x").write_bytes(content)
    if place == "net":
        async with reading(f"{server.url}/x", http) as reader:
            with pytest.raises(MediaError):
                await reader.all()
    else:
        reader = Reader()
        async with MediaSource.open(FileLocation(tmp_path, ("x",)), on_data=reader.wake) as reader.source:
            with pytest.raises(MediaError):
                await reader.all()
    assert decoders() == []


async def test_a_film_without_sound_is_an_error(server: MediaServer, http: MediaHttp, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "film.mp4"), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    server.files["/film"] = (tmp_path / "film.mp4").read_bytes()
    async with reading(f"{server.url}/film", http) as reader:
        with pytest.raises(MediaError, match="no sound"):
            await reader.all()


async def test_an_endless_stream_ends(server: MediaServer, http: MediaHttp) -> None:
    server.files["/radio"] = encoded("mp3-bare")
    server.endless.add("/radio")
    async with reading(f"{server.url}/radio", http, limits=MediaLimits(max_seconds=40)) as reader:
        with pytest.raises(MediaError, match="too long"):
            await reader.read(1 << 30, step=4800)
    async with reading(f"{server.url}/radio", http, limits=MediaLimits(max_bytes=1_000_000)) as reader:
        with pytest.raises(MediaError, match="does not end"):
            await reader.read(1 << 30, step=4800)


async def test_endless_nonsense_ends(server: MediaServer, http: MediaHttp) -> None:
    server.files["/x"] = b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x64" + bytes(60_000)
    server.endless.add("/x")
    async with reading(f"{server.url}/x", http, limits=MediaLimits(max_barren_bytes=2_000_000)) as reader:
        with pytest.raises(MediaError):
            await reader.all()


async def test_a_file_too_large_is_refused_before_it_is_fetched(
    server: MediaServer, http: MediaHttp, tmp_path: Path
) -> None:
    async with reading(f"{server.url}/mp3", http, limits=MediaLimits(max_bytes=100_000)) as reader:
        with pytest.raises(MediaError, match="too large"):
            await reader.all()
    (tmp_path / "x").write_bytes(encoded("mp3"))
    limits = MediaLimits(max_bytes=100_000)
    async with MediaSource.open(FileLocation(tmp_path, ("x",)), limits=limits) as source:
        with pytest.raises(MediaError, match="too large"):
            await source.ready()


async def test_a_zip_bomb_of_audio_is_cut_off(server: MediaServer, http: MediaHttp) -> None:
    server.files["/bomb"] = encode(np.zeros(180 * SAMPLE_RATE, np.int16), "flac")
    assert len(server.files["/bomb"]) < 60_000
    limits = MediaLimits(max_ratio=100)
    async with reading(f"{server.url}/bomb", http, limits=limits) as reader:
        assert reader.source is not None
        with pytest.raises(MediaError, match="unpacks") as refused:
            await reader.read(1 << 30, step=4800)
        assert refused.value.reason == "size"
        assert reader.source.most_buffered < 5 * SAMPLE_RATE


async def test_a_file_that_changes_while_it_plays_is_an_error(server: MediaServer, http: MediaHttp) -> None:
    server.files["/long"] = encoded("mp3-bare") * 50
    async with reading(f"{server.url}/long", http) as reader:
        await reader.read(4800)
        server.files["/long"] = encoded("mp3") * 50
        with pytest.raises(MediaError, match="changed"):
            await reader.all()


@pytest.mark.parametrize("moment", ["at once", "hanging", "playing", "full"])
async def test_closing_leaves_no_thread_task_or_connection(moment: str, server: MediaServer, http: MediaHttp) -> None:
    before = asyncio.all_tasks()
    if moment == "hanging":
        server.behaviour.fail(Fault.HANG)
    async with reading(f"{server.url}/wav", http) as reader:
        assert reader.source is not None
        if moment in {"playing", "full"}:
            await reader.source.ready()
        if moment == "playing":
            await reader.read(2 * SAMPLE_RATE)
    assert decoders() == []
    assert {task for task in asyncio.all_tasks() - before if "media" in task.get_name()} == set()
    await http.aclose()


async def test_an_idle_source_fetches_no_further(server: MediaServer, http: MediaHttp) -> None:
    server.files["/long"] = encoded("mp3-bare", 12.0) * 50
    async with reading(f"{server.url}/long", http) as reader:
        await reader.read(SAMPLE_RATE)
        assert server.sent < 1_500_000 < len(server.files["/long"])


async def test_reads_in_vain_cost_nothing_and_the_end_is_an_empty_block(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encoded("wav"))
    reader = Reader()
    async with MediaSource.open(FileLocation(tmp_path, ("x",)), on_data=reader.wake) as source:
        assert source.read(480, at_least=20 * SAMPLE_RATE) is None
        reader.source = source
        heard = await reader.all()
        assert len(heard) == len(noise())
        again = source.read(480)
        assert again is not None
        assert len(again) == 0
        assert source.complete
        assert source.duration == pytest.approx(12.0)
