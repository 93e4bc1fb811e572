"""`python -m agent doctor`: a line for each part, green or what is wrong and what to do."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from rich.console import Console
from rich.text import Text

from agent.doctor.checks import Check, Finding, run_checks
from agent.doctor.livekit import livekit_checks
from agent.doctor.machine import machine_checks
from agent.doctor.providers import provider_checks
from agent.doctor.services import service_checks
from agent.errors import SettingsError
from agent.settings import Settings, load_settings
from agent.telemetry.scrub import Scrubber

_SIGNS: Final = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("–", "dim")}


def all_checks(settings: Settings) -> list[Check]:
    """Every check, in the order in which it is told."""
    machine = machine_checks(settings)
    return [
        *machine[:1],
        *livekit_checks(settings),
        *service_checks(settings),
        *provider_checks(settings),
        *machine[1:],
    ]


async def examine(settings: Settings) -> list[Finding]:
    """Run every check. Takes as long as the slowest, and never longer than its deadline."""
    if settings.qdrant_url is not None:
        # Two seconds of CPU: inside a check they would be counted as everybody's delay.
        await asyncio.to_thread(importlib.import_module, "qdrant_client")
    return await run_checks(all_checks(settings), Scrubber(settings).text)


def run(argv: Sequence[str]) -> int:
    """The command. Exit code 0: nothing failed; 1: something did, or the settings cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m agent doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    args = parser.parse_args(argv)
    # Libraries tell of every failed try; each is a line of ours already.
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    try:
        settings = load_settings()
    except SettingsError as error:
        findings = [
            Finding("failed", line, "correct it in the environment or .env", "settings")
            for line in str(error).splitlines()
        ]
    else:
        findings = asyncio.run(examine(settings))
    _tell(findings, as_json=args.json)
    return 1 if any(finding.status == "failed" for finding in findings) else 0


def _tell(findings: Sequence[Finding], *, as_json: bool) -> None:
    console = Console(highlight=False)
    if as_json:
        well = all(finding.status != "failed" for finding in findings)
        console.file.write(json.dumps({"ok": well, "checks": [asdict(f) for f in findings]}, ensure_ascii=False) + "\n")
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        sign, style = _SIGNS[finding.status]
        console.print(
            Text.assemble(
                (sign, style), f" {finding.name:<{width}}  {finding.took_ms:7.0f} ms  ", (finding.message, style)
            ),
            soft_wrap=True,
        )
        if finding.advice and finding.status != "ok":
            console.print(Text(f"{'':<{width + 15}}{finding.advice}"), soft_wrap=True)
