"""Checks of the services beside us: Manager API, library, Mem0, Redis, media, and a worker that runs here."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import aiohttp
from redis.exceptions import AuthenticationError, RedisError

from agent.briefing.manager_api import ManagerApiClient
from agent.briefing.mem0_process import open_memory, self_hosted
from agent.doctor.checks import Check, Finding, failed, ok, skipped, warning
from agent.errors import ModelFileError, MustBindFirst, NotFound, Unavailable
from agent.library import model_files
from agent.library.home import mismatch
from agent.library.homes import collections, open_home
from agent.library.titles import Kind
from agent.redis_client import connect_async
from agent.settings import Settings
from agent.values import DeviceMac

_NOBODY: Final = DeviceMac("02:00:00:00:00:00")
_PATIENCE_S: Final = 8.0
_KINDS: Final[tuple[Kind, ...]] = ("music", "story")


def service_checks(settings: Settings) -> list[Check]:
    """All of them."""
    return [
        Check(
            "Manager API",
            lambda: check_manager(settings),
            "see that it runs and that MANAGER_API_URL is its address, path included",
        ),
        Check(
            "library",
            lambda: check_library(settings),
            "see that Qdrant runs and that QDRANT_URL and QDRANT_API_KEY are right",
            deadline_s=30.0,
        ),
        Check("Mem0", lambda: check_memory_service(settings), "see that MEM0_HOST and MEM0_API_KEY are right"),
        Check("Redis", lambda: check_redis(settings), "see that Redis runs and that REDIS_URL is right"),
        Check("media", lambda: check_media(settings), "see that MEDIA_BASE_URL is right and its server answers"),
        Check("worker", lambda: check_worker(settings), "see the worker's log"),
    ]


async def check_manager(settings: Settings) -> Finding:
    """It answers, and takes our secret: asked for a device that nobody has."""
    if settings.manager_api_url is None:
        return skipped("not configured", "MANAGER_API_URL names the service that knows devices and children")
    client = ManagerApiClient(settings.manager_api_url, settings.manager_api_secret, deadline=_PATIENCE_S)
    begun = time.monotonic()
    try:
        await client.agent_id(_NOBODY)
    except (NotFound, MustBindFirst):
        pass  # the answer that a device nobody has must get
    finally:
        await client.aclose()
    took_ms = (time.monotonic() - begun) * 1000
    if took_ms > settings.manager_api_deadline_ms:
        return warning(
            f"answers after {took_ms:.0f} ms, visits wait for {settings.manager_api_deadline_ms} ms",
            "see why it is slow, or raise MANAGER_API_DEADLINE_MS",
        )
    return ok("answers and takes our secret")


async def check_library(settings: Settings) -> Finding:
    """Collections are there, filled, and made with our embedding model."""

    def look() -> Finding:
        home = open_home(settings)
        names = collections(settings)
        try:
            states = {kind: home.state(kind) for kind in _KINDS}
        finally:
            home.close()
        told = ", ".join(
            f"{names[kind]}: {state.count} titles" if state.exists else f"{names[kind]}: {state.damage or 'missing'}"
            for kind, state in states.items()
        )
        try:
            files = model_files.find(settings)
        except ModelFileError:
            files = None  # has a line of its own
        for kind, state in states.items():
            if files is not None:
                why = mismatch(f"collection {names[kind]}", state, files.name, files.dimension)
                if why is not None:
                    return failed(why, "set EMBEDDING_MODEL accordingly, or load the catalogue again")
        if not any(state.count for state in states.values()):
            return warning(f"{home.name}: {told}", "fill it: python -m agent catalogue load DIR")
        if not all(state.count for state in states.values()):
            return warning(f"{home.name}: {told}", "load what is missing: python -m agent catalogue load DIR")
        return ok(f"{home.name}: {told}")

    return await asyncio.to_thread(look)


async def check_memory_service(settings: Settings) -> Finding:
    """One search for a child that nobody has."""
    if settings.mem0_enabled.percent == 0:
        return skipped("not configured", "MEM0_ENABLED lets the agent remember children")
    memory = open_memory(settings)
    try:
        await memory.recall("doctor", user_id="doctor", limit=1)
    except Unavailable as error:
        if self_hosted(settings):
            return warning(f"the self-hosted Mem0 does not answer: {error}", "it runs with a worker: start one here")
        raise
    finally:
        await memory.aclose()
    return ok("searches" + (", self-hosted" if self_hosted(settings) else f" at {settings.mem0_host}"))


async def check_redis(settings: Settings) -> Finding:
    """It answers a ping."""
    if settings.redis_url is None:
        return skipped("not configured", "REDIS_URL lets devices be known on whichever of several machines they land")
    client = connect_async(settings.redis_url, timeout=5)
    try:
        await client.ping()
    except AuthenticationError:
        return failed("Redis refuses the password", "correct the password in REDIS_URL")
    except (RedisError, OSError) as error:
        return failed(f"Redis does not answer: {type(error).__name__}", "see that REDIS_URL is right")
    finally:
        await client.aclose()
    return ok("answers")


async def check_media(settings: Settings) -> Finding:
    """The server answers, whatever it says of its root."""
    if settings.media_base_url is None:
        if settings.catalogue_dir is None:
            return skipped("not configured", "CATALOGUE_DIR or MEDIA_BASE_URL is where songs and stories play from")
        if not settings.catalogue_dir.is_dir():
            return failed(f"CATALOGUE_DIR {settings.catalogue_dir} is no folder", "set it to the catalogue's folder")
        return ok(f"plays from {settings.catalogue_dir}")
    async with aiohttp.ClientSession() as http, http.head(settings.media_base_url) as answer:
        if answer.status >= 500:
            return failed(f"the media server says HTTP {answer.status}", "see that its server works")
    return ok("answers")


async def check_worker(settings: Settings) -> Finding:
    """Whether the worker that runs here, if one does, is ready."""
    host = "127.0.0.1" if settings.http_host in {"0.0.0.0", "::"} else settings.http_host  # noqa: S104 — read, not bound
    url = f"http://{host}:{settings.http_port}/ready"
    try:
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            found = await answer.json(content_type=None)
            ready, status = bool(found["ready"]), answer.status
    except aiohttp.ClientConnectorError:
        return skipped(f"none runs at port {settings.http_port}")
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        return failed(
            f"port {settings.http_port} belongs to another program", "set HTTP_PORT to a free port, or stop the other"
        )
    if ready:
        return ok(f"ready, {found.get('active_calls')} of {found.get('max_concurrent_calls')} rooms in use")
    if isinstance(problems := found.get("problems"), dict) and problems:
        why = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
    else:
        why = ", ".join(f"{name} {value}" for name, value in found.items() if name != "problems")
    return warning(f"runs, but is not ready (HTTP {status}): {why}", "see the worker's log")
