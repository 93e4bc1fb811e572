"""Checks of the LiveKit server: keys, address, clock, round trip, and whether media gets through."""

from __future__ import annotations

import asyncio
import time
import uuid
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from livekit import api, rtc

from agent.doctor.checks import Check, Finding, failed, ok, warning
from agent.livekit_server import http_url
from agent.settings import Settings

SKEW_WARNING_S: Final = 5.0
SKEW_FAILURE_S: Final = 60.0
_ADVICE: Final = "see that the server runs and that LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET are its own"


def livekit_checks(settings: Settings) -> list[Check]:
    """All of them."""
    return [
        Check("LiveKit", lambda: check_server(settings), _ADVICE),
        Check(
            "LiveKit media",
            lambda: check_media_path(settings),
            "open the server's UDP and TCP media ports for this machine, and see its rtc settings (node_ip)",
        ),
    ]


def _keys(settings: Settings) -> tuple[str, str] | None:
    secret = settings.livekit_api_secret.get_secret_value()
    return (settings.livekit_api_key, secret) if settings.livekit_api_key and secret else None


async def check_server(settings: Settings) -> Finding:
    """It answers, its clock is ours, and it takes our keys."""
    keys = _keys(settings)
    url = http_url(settings.livekit_url)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=8)) as http:
        try:
            async with http.get(url):
                pass
            asked, begun = time.time(), time.perf_counter()
            async with http.get(url) as answer:
                round_trip_ms = (time.perf_counter() - begun) * 1000
                skew_s = clock_skew(answer.headers.get("Date"), asked, time.time())
        except aiohttp.ClientError as error:
            return failed(
                f"{settings.livekit_url} cannot be reached: {type(error).__name__}",
                "see that the server runs and that LIVEKIT_URL is its address",
            )
    told = f"round trip {round_trip_ms:.1f} ms"
    if keys is None:
        return failed(
            f"LIVEKIT_API_KEY or LIVEKIT_API_SECRET is not set ({told})", "set both to the keys of the LiveKit project"
        )
    clocks = "synchronise this machine's clock (NTP): tokens are valid for a time"
    if skew_s is not None and abs(skew_s) > SKEW_FAILURE_S:
        return failed(f"the clocks differ by {skew_s:.0f} s", clocks)
    try:
        async with api.LiveKitAPI(url, *keys) as livekit:
            await livekit.room.list_rooms(api.ListRoomsRequest())
    except api.TwirpError as error:
        return failed(
            f"the server refuses our keys: {error.code}", "set LIVEKIT_API_KEY and LIVEKIT_API_SECRET rightly"
        )
    if skew_s is not None and abs(skew_s) > SKEW_WARNING_S:
        return warning(f"{told}, but the clocks differ by {skew_s:.0f} s", clocks)
    return ok(f"{told}, clocks agree, keys are taken")


def clock_skew(date: str | None, asked: float, answered: float) -> float | None:
    """By how many seconds the server's clock is ahead of ours, as near as its whole seconds tell; None if unknown.

    `asked` and `answered` are our own Unix times around the request.
    """
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError):
        return None
    # Their time was somewhere within one second, ours somewhere between asking and the answer.
    if asked - 1 <= theirs <= answered:
        return 0.0
    return theirs - answered if theirs > answered else theirs + 1 - asked


async def check_media_path(settings: Settings) -> Finding:
    """Join a room of our own as anyone would, and leave it."""
    keys = _keys(settings)
    if keys is None:
        return failed("not tried: the keys are missing", "set LIVEKIT_API_KEY and LIVEKIT_API_SECRET")
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    token = (
        api.AccessToken(*keys)
        .with_identity("doctor")
        .with_grants(api.VideoGrants(room_join=True, room=name, can_publish=True))
        .to_jwt()
    )
    room = rtc.Room()
    begun = time.perf_counter()
    try:
        await room.connect(settings.livekit_url, token, rtc.RoomOptions(connect_timeout=10.0))
        joined_ms = (time.perf_counter() - begun) * 1000
        source = rtc.AudioSource(24_000, 1)
        await room.local_participant.publish_track(rtc.LocalAudioTrack.create_audio_track("doctor", source))
        published_ms = (time.perf_counter() - begun) * 1000
        await source.aclose()
    except rtc.ConnectError:
        return failed("a room cannot be joined", "see that keys are right and the server's media ports are open")
    finally:
        await asyncio.shield(_leave(settings, keys, room, name))
    return ok(f"joined a room in {joined_ms:.0f} ms, published after {published_ms:.0f} ms")


async def _leave(settings: Settings, keys: tuple[str, str], room: rtc.Room, name: str) -> None:
    await room.disconnect()
    try:
        async with api.LiveKitAPI(http_url(settings.livekit_url), *keys) as livekit:
            await livekit.room.delete_room(api.DeleteRoomRequest(room=name))
    except (api.TwirpError, aiohttp.ClientError):
        return  # it was never made, or closes by itself once it is empty
