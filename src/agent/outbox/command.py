"""`python -m agent outbox`: what waits, what was refused for ever, and another try for it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.outbox.home import FORWARD, existing_stores
from agent.outbox.items import DEAD_KEPT
from agent.settings import Settings
from agent.values import device_key

_KINDS: Final = ("chat", "memory", FORWARD)
_SHOWN: Final = 100


def run(argv: Sequence[str], settings: Settings, *, console: Console | None = None) -> int:
    """`list` shows no word of any child, and devices as they are called in the logs. `retry` puts what was refused back
    in its lane. Raises OutboxError."""
    console = console or Console()
    parser = argparse.ArgumentParser(prog="python -m agent outbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="how much waits, and the refused items, newest first, with reasons")
    commands.add_parser("retry", help="deliver what was refused once more: after its receiver has been mended")
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        stores = existing_stores(settings)
        for store in stores.values():
            stack.callback(store.close)
        if args.command == "retry":
            console.print(f"{sum(store.revive() for store in stores.values())} items will be tried again.")
            return 0
        for home, store in stores.items():
            for kind, found in store.stats(_KINDS).items():
                if found.depth:
                    oldest = found.oldest_age_s / 60
                    console.print(f"{home}: {found.depth} items of kind {kind} wait, the oldest for {oldest:.0f} min")
            dead = store.dead_items(DEAD_KEPT)
            console.print(f"{home}: {len(dead)} items were refused")
            if not dead:
                continue
            table = Table("kind", "device", "age", "reason")
            salt = settings.device_salt.get_secret_value()
            for item, reason in dead[:_SHOWN]:
                age = f"{(time.time() - item.created_at) / 3600:.1f} h"
                table.add_row(item.kind, device_key(item.lane, salt), age, escape(reason))
            console.print(table)
    if not stores:
        console.print(f"empty: there is no outbox in {settings.state_dir} (STATE_DIR)", soft_wrap=True)
    return 0
