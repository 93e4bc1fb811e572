"""What a check is, and how all of them run: side by side, each with a deadline, none able to stop the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from agent.errors import RemoteError, ToyError, Unauthorised

Status = Literal["ok", "warning", "failed", "skipped"]
"""`skipped` is what is not configured; only `failed` makes the doctor's exit code 1."""

DEADLINE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: in what state, said in a sentence, and what to do about it."""

    status: Status
    message: str
    advice: str = ""
    name: str = ""
    took_ms: float = 0.0


def ok(message: str) -> Finding:
    """All is well."""
    return Finding("ok", message)


def skipped(message: str, advice: str = "") -> Finding:
    """Not configured; `advice` says what it would bring."""
    return Finding("skipped", message, advice)


def warning(message: str, advice: str) -> Finding:
    """It works, but."""
    return Finding("warning", message, advice)


def failed(message: str, advice: str) -> Finding:
    """It does not work."""
    return Finding("failed", message, advice)


@dataclass(frozen=True, slots=True)
class Check:
    """`look` finds out; `advice` is for errors that carry none of their own."""

    name: str
    look: Callable[[], Awaitable[Finding]]
    advice: str
    deadline_s: float = DEADLINE_S


async def run_checks(checks: Sequence[Check], clean: Callable[[str], str] = str) -> list[Finding]:
    """Every check's finding, in the order given. `clean` takes secrets out of what is said."""
    return list(await asyncio.gather(*(_run(check, clean) for check in checks)))


async def _run(check: Check, clean: Callable[[str], str]) -> Finding:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(check.deadline_s):
            found = await check.look()
    except TimeoutError:
        found = failed(f"no answer within {check.deadline_s:g} s", check.advice)
    except Unauthorised as error:
        found = failed(str(error), "set the key or secret that this service expects")
    except RemoteError as error:
        found = failed(str(error), check.advice)
    except ToyError as error:
        found = failed(str(error), check.advice)
    except Exception as error:  # noqa: BLE001 — whatever one check meets, the others must be told
        found = failed(f"{type(error).__name__}: {error}", check.advice)
    took_ms = round((time.perf_counter() - started) * 1000, 1)
    return replace(
        found,
        name=check.name,
        took_ms=took_ms,
        message=clean(" ".join(found.message.split())[:500]),
        advice=found.advice,
    )
