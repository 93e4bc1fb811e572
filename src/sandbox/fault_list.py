"""What goes wrong in `scripts/bench faults`: each harm to each service, processes that die, a disk, a clock."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from sandbox.device import RoomForm
from sandbox.fault_house import House
from sandbox.fault_visit import Toy
from sandbox.redis_server import HOW_TO_GET, find_redis_server
from sandbox.toxiproxy import Toxic

HOUR = 3600

Deed = Callable[[House, Toy], Awaitable[None]]

TOXICS: dict[str, tuple[Toxic, ...]] = {
    "latency": (Toxic("latency", {"latency": 1500}),),
    "jitter": (
        Toxic("latency", {"latency": 400, "jitter": 400}),
        Toxic("slicer", {"average_size": 400, "delay": 2000}),
    ),
    "slow_close": (Toxic("slow_close", {"delay": 10_000}),),
    "reset_peer": (Toxic("reset_peer", {"timeout": 0}),),
    "black_hole": (Toxic("timeout", {"timeout": 0}), Toxic("timeout", {"timeout": 0}, upstream=True)),
    "bandwidth": (Toxic("bandwidth", {"rate": 4}), Toxic("bandwidth", {"rate": 4}, upstream=True)),
}
SERVICES = ("manager", "llm", "stt", "tts", "elevenlabs", "mem0", "media", "qdrant", "livekit", "signalling")


async def nothing(_house: House, _toy: Toy) -> None:
    """Not a deed."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. `strike` and `heal` do it and undo it; see `fault_visit.struck` for the others.

    `inside` None: in the middle of a conversation in every second round, before the device comes in the others.
    `house` is what it needs of its house. `impossible` tells why it cannot be tried here; None: it can.
    """

    name: str
    strike: Deed
    heal: Deed = nothing
    inside: bool | None = None
    agent_dies: bool = False
    leaves: bool = False
    form: RoomForm = "plain"
    remote: bool = False
    eleven: bool = False
    house: str = "plain"
    impossible: Callable[[], str | None] = lambda: None

    @property
    def options(self) -> dict[str, bool | RoomForm]:
        """What its visits are like."""
        return {"form": self.form, "remote": self.remote, "eleven": self.eleven}


def toxic_fault(service: str, name: str) -> Fault:
    """One harm to one service."""

    async def strike(house: House, _toy: Toy) -> None:
        await house.proxies[service].strike(*TOXICS[name])

    async def heal(house: House, _toy: Toy) -> None:
        await house.proxies[service].heal()

    return Fault(
        f"{service}-{name}",
        strike,
        heal,
        inside=False if service == "media" else None,
        form="story" if service == "media" else "plain",
        remote=service == "signalling",
        eleven=service == "elevenlabs",
    )


async def _kill_visit(house: House, toy: Toy) -> None:
    await house.kill_visit(toy.began)


async def _kill_visit_without_redis(house: House, toy: Toy) -> None:
    await house.proxies["redis"].strike(*TOXICS["black_hole"])
    await house.kill_visit(toy.began)


async def _heal_redis(house: House, _toy: Toy) -> None:
    await house.proxies["redis"].heal()


async def _stop_redis(house: House, _toy: Toy) -> None:
    await house.redis.stop()


async def _start_redis(house: House, _toy: Toy) -> None:
    await house.redis.start()


async def _replace_worker(house: House, _toy: Toy) -> None:
    await house.kill_worker()
    await house.start_worker()


async def _restart_server(house: House, _toy: Toy) -> None:
    await house.restart_server()


async def _fill_disk(house: House, _toy: Toy) -> None:
    await asyncio.to_thread(house.fill_disk)


async def _free_disk(house: House, _toy: Toy) -> None:
    await asyncio.to_thread(house.free_disk)


def _jump(seconds: int) -> Deed:
    async def jump(house: House, _toy: Toy) -> None:
        house.set_clock(seconds)

    return jump


def _needs_redis() -> str | None:
    return None if find_redis_server() else HOW_TO_GET


def _needs_namespaces() -> str | None:
    command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"no mount namespace: {error}"
    return None if done.returncode == 0 else f"no mount namespace: {done.stderr.strip()}"


FAULTS: tuple[Fault, ...] = (
    Fault("job-killed", _kill_visit, inside=True, agent_dies=True),
    Fault(
        "job-killed-redis-black_hole",
        _kill_visit_without_redis,
        _heal_redis,
        inside=True,
        agent_dies=True,
        house="redis",
        impossible=_needs_redis,
    ),
    *(replace(toxic_fault("redis", name), house="redis", impossible=_needs_redis) for name in TOXICS),
    Fault("redis-away", _stop_redis, _start_redis, house="redis", impossible=_needs_redis),
    Fault("redis-away-to-the-end", _stop_redis, _start_redis, leaves=True, house="redis", impossible=_needs_redis),
    Fault("worker-killed", _replace_worker, inside=True, agent_dies=True),
    Fault("livekit-restarted", _restart_server, inside=True),
    *(toxic_fault(service, name) for service in SERVICES for name in TOXICS),
    Fault("disk-full", _fill_disk, _free_disk, house="disk", impossible=_needs_namespaces),
    Fault("disk-full-to-the-end", _fill_disk, _free_disk, leaves=True, house="disk", impossible=_needs_namespaces),
    Fault("clock-forward", _jump(HOUR), _jump(0), house="clock"),
    Fault("clock-back", _jump(-HOUR), _jump(0), house="clock"),
)
