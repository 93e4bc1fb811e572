"""`python -m agent greetings`: list the recordings, check them, make new ones."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.errors import SettingsError
from agent.greeting.bank import GreetingBank
from agent.greeting.generate import Generator, Job, Outcome
from agent.greeting.makers import MAKERS, make_maker
from agent.greeting.script import SCRIPT_NAME, read_script
from agent.settings import Settings, load_settings

_HTTP_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10)


def run(argv: Sequence[str], *, settings: Settings | None = None, console: Console | None = None) -> int:
    """`list` shows the bank, `make` makes what is missing or changed. Returns the exit status.

    0: all is well; 1: a recording is refused or could not be made; 2: wrong arguments or configuration.
    """
    console = console or Console()
    try:
        arguments = _parser().parse_args(list(argv))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    try:
        settings = settings or load_settings()
        folder = arguments.dir or settings.greetings_dir
        if arguments.command == "make":
            return asyncio.run(_make(arguments, settings, folder, console))
        return _list(folder, console)
    except SettingsError as error:
        console.print(f"[red]{escape(str(error))}[/red]")
        return 2
    except OSError as error:
        console.print(f"[red]{escape(str(folder))}: {escape(error.strerror or type(error).__name__)}[/red]")
        return 2
    except KeyboardInterrupt:
        console.print("stopped; what is made is kept")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent greetings", description="Recorded greetings and sentences.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show what can be played, and what is refused and why")
    making = commands.add_parser("make", help="make what is missing or has changed")
    for command in (listing, making):
        command.add_argument("--dir", type=Path, help="folder of the recordings (GREETINGS_DIR)")
    making.add_argument("--script", type=Path, help=f"what they say (the folder's {SCRIPT_NAME})")
    making.add_argument("--maker", choices=MAKERS, help="who speaks (default: who spoke it before, else espeak-ng)")
    making.add_argument("--voice", help="the maker's voice, instead of the script's")
    making.add_argument("--only", action="append", default=[], metavar="ID", help="id or pattern (en_*); repeatable")
    making.add_argument("--force", action="store_true", help="make also what is up to date")
    return parser


async def _make(arguments: argparse.Namespace, settings: Settings, folder: Path, console: Console) -> int:
    script = read_script(arguments.script or folder / SCRIPT_NAME)
    async with aiohttp.ClientSession(timeout=_HTTP_TIMEOUT) as http:
        generator = Generator(folder, script, lambda name: make_maker(name, http, settings))
        jobs, kept = generator.plan(
            maker=arguments.maker, voice=arguments.voice, only=arguments.only, force=arguments.force
        )
        outcome = await _with_progress(generator, jobs, console)
    for file, reason in sorted(outcome.failed.items()):
        console.print(f"[red]{escape(file)}: {escape(reason)}[/red]")
    console.print(f"{len(outcome.made)} made, {len(kept)} up to date, {len(outcome.failed)} failed, in {folder}")
    return 1 if outcome.failed else 0


async def _with_progress(generator: Generator, jobs: list[Job], console: Console) -> Outcome:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not jobs) as progress:
        task = progress.add_task("recordings", total=len(jobs))

        def on_done(job: Job, why: str | None) -> None:
            progress.update(task, advance=1, description=f"{job.line.id} {'failed' if why else 'made'}")

        return await generator.make(jobs, on_done)


def _list(folder: Path, console: Console) -> int:
    bank = GreetingBank.load(folder)
    table = Table("id", "purpose", "language", "style", "seconds", "maker", "text")
    for item in bank.recordings:
        row = (item.id, item.purpose, item.language, item.style, f"{item.duration:.2f}", item.maker, item.text)
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    for problem in bank.problems:
        console.print(f"[red]{escape(str(problem))}[/red]")
    return 1 if bank.problems else 0
