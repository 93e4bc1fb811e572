"""Shared by the tests of the briefing room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.briefing.desk import BriefingDesk
from agent.briefing.profile import Part, Source
from agent.settings import Rollout, Settings
from sandbox.faults import Fault
from sandbox.manager_api import DEMO_MAC, Call, ManagerApi, Override

ROOM = "0b9b7ff0-1111-4222-8333-444455556666_6825ddba3978"
CALL_OF = {
    Part.AGENT_ID: Call.AGENT_ID,
    Part.PROMPT: Call.AGENT_PROMPT,
    Part.MODELS: Call.AGENT_MODELS,
    Part.CHILD: Call.CHILD_PROFILE,
}
ALL_LIVE = dict.fromkeys(Part, Source.LIVE)
ON, OFF = Rollout(100), Rollout(0)


class Clock:
    """Unix seconds that move when told."""

    def __init__(self, now: float = 1_758_700_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def settings_for(api: ManagerApi | None, state_dir: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "manager_api_url": api.url if api else None,
        "manager_api_secret": api.secret if api else None,
        "manager_api_deadline_ms": 5000,
        "device_file": None,
        "state_dir": state_dir,
        **changes,
    }
    return Settings(**values)


def desk_for(
    api: ManagerApi | None, state_dir: Path, *, clock: Callable[[], float] | None = None, **changes: Any
) -> BriefingDesk:
    return BriefingDesk(
        settings_for(api, state_dir, **changes), mac=DEMO_MAC, room_name=ROOM, wall_clock=clock or Clock()
    )


def bytes_in(folder: Path) -> bytes:
    """Everything that stands in a folder's files."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


@dataclass(frozen=True)
class Trouble:
    """A fault, and the kind of error every briefing call makes of it."""

    name: str
    strike: Callable[..., None]
    problem: str
    hangs: bool = False

    def __str__(self) -> str:
        return self.name


def _rate_limit(api: ManagerApi, *calls: Call) -> None:
    for call in calls or tuple(Call):
        api.behaviour[call].fail(Fault.RATE_LIMIT, retry_after=60)


def _fault(fault: Fault) -> Callable[..., None]:
    return lambda api, *calls: api.fail(fault, *calls)


def _answer(override: Override) -> Callable[..., None]:
    return lambda api, *calls: api.answer(override, *calls)


TROUBLES = [
    Trouble("hang", _fault(Fault.HANG), "Unavailable", hangs=True),
    Trouble("stall", _fault(Fault.STALL), "Unavailable", hangs=True),
    Trouble("http-500", _fault(Fault.ERROR), "Unavailable"),
    Trouble("http-401", _fault(Fault.UNAUTHORISED), "Unauthorised"),
    Trouble("rate-limit", _rate_limit, "RateLimited"),
    Trouble("reset", _fault(Fault.RESET), "Unavailable"),
    Trouble("truncated", _fault(Fault.TRUNCATE), "Unavailable"),
    Trouble("garbage", _fault(Fault.NONSENSE), "Malformed"),
    Trouble("lying", lambda api, *calls: api.lie(*calls), "Malformed"),
    Trouble("code-500", _answer(Override(code=500, msg="Server internal exception")), "Rejected"),
    Trouble("code-401", _answer(Override(code=401, msg="Unauthorized")), "Unauthorised"),
    Trouble("code-10034", _answer(Override(code=10034, msg="validation")), "Rejected"),
    Trouble("redirect", _answer(Override(status=302, headers={"Location": "/elsewhere"})), "Malformed"),
    Trouble("not-found-page", _answer(Override(status=404, body=b"<html>404</html>")), "Rejected"),
    Trouble("huge", _answer(Override(data="x" * 700_000)), "Malformed"),
    Trouble("deep", _answer(Override(body=b'{"code":0,"data":' + b"[" * 100_000)), "Malformed"),
]
