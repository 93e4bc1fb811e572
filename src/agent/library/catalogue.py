"""The command `python -m agent catalogue`: load, verify, list, search."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agent.errors import LibraryError, ToyError
from agent.library import ingest, model_files
from agent.library.catalogue_files import FOLDERS, CatalogueFiles, printable, read_catalogue
from agent.library.embedding import Embedder
from agent.library.home import Home
from agent.library.homes import open_home
from agent.library.requests import Sections
from agent.library.services import prepare
from agent.library.titles import KINDS, Kind, Title, embedded_text
from agent.library.watcher import CatalogueWatcher
from agent.settings import Settings

_SHOWN = 20


class _Rate(ProgressColumn):
    """Titles a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f}/s", style="progress.data.speed")


def run(argv: Sequence[str], settings: Settings, console: Console | None = None) -> int:
    """Run one command; returns the exit code: 0 well, 1 something is amiss, 2 wrong arguments, 130 stopped."""
    out = console or Console(highlight=False, soft_wrap=True)
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as error:
        return int(error.code or 0)
    try:
        return int(arguments.command(arguments, settings, out))
    except ToyError as error:
        out.print(f"[red]{escape(str(error))}[/red]")
        return 1
    except KeyboardInterrupt:
        out.print("Stopped. What was done is kept: run the command again to go on.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent catalogue", description="Songs and stories of the library.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    load = commands.add_parser("load", help="put a catalogue folder into the library")
    load.add_argument("folder", type=Path, metavar="DIR", help="folder with music/ and stories/")
    load.add_argument("--prune", action="store_true", help="remove titles that the folder does not have")
    load.set_defaults(command=_load)
    verify = commands.add_parser("verify", help="compare the folder, its audio and the library")
    verify.add_argument("folder", type=Path, metavar="DIR", nargs="?", help="default: CATALOGUE_DIR")
    verify.set_defaults(command=_verify)
    listing = commands.add_parser("list", help="list what the library holds")
    search = commands.add_parser("search", help="ask as a child would")
    search.add_argument("request", help='such as "the one about the spider"')
    for command in (listing, search):
        command.add_argument("--kind", choices=KINDS, help="songs or stories only")
        command.add_argument("--section", help="a language or category, by any of its names")
        command.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(command=_list)
    search.set_defaults(command=_search)
    return parser


def _load(arguments: argparse.Namespace, settings: Settings, out: Console) -> int:
    files = read_catalogue(arguments.folder)
    _tell_problems(files, out)
    embedder = Embedder(model_files.find(settings))
    started = time.monotonic()
    cache = ingest.VectorCache(settings.state_dir / "catalogue" / "vectors.db", embedder)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
        console=out, transient=not out.is_terminal,
    )  # fmt: skip
    with closing(cache), _home(settings) as home, progress:
        task = progress.add_task("Loading", total=None)
        results = ingest.load(
            files, home, cache, embedder, prune=arguments.prune,
            told=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
        cache.keep_only([embedded_text(title) for title in files.titles])
    for result in results:
        out.print(
            f"{FOLDERS[result.kind]}: {result.added} added, {result.changed} changed, {result.unchanged} unchanged, "
            f"{result.removed} removed"
        )
        if result.foreign:
            out.print(f"  {len(result.foreign)} more are in the library and not in the folder (--prune removes them)")
    out.print(f"{home.name}: loaded in {time.monotonic() - started:.1f} s")
    return 1 if files.problems else 0


def _verify(arguments: argparse.Namespace, settings: Settings, out: Console) -> int:
    folder = arguments.folder or settings.catalogue_dir
    if folder is None:
        out.print("[red]Which catalogue? Give its folder, or set CATALOGUE_DIR.[/red]")
        return 2
    files = read_catalogue(folder)
    _tell_problems(files, out)
    embedder = Embedder(model_files.find(settings))
    with _home(settings) as home:
        results, unnamed = ingest.verify(files, home, embedder)
    for found in results:
        out.print(f"{FOLDERS[found.kind]}: {found.complete} titles are complete")
        _tell_titles(out, "no audio on disk", found.no_audio)
        _tell_titles(out, "not in the library", found.not_in_home)
        _tell_titles(out, "neither audio on disk nor in the library", found.in_neither)
        _tell_titles(out, "other in the library than in the folder", found.outdated)
        _tell_titles(out, "in the library only", found.only_in_home)
        _tell_titles(out, "not found by their own vector", found.not_found_by_vector)
    if unnamed:
        out.print(f"  {len(unnamed)} sound files that no entry names:")
        _tell_lines(out, [path.as_posix() for path in unnamed])
    well = all(found.well for found in results) and not files.problems
    out.print("All is well." if well and not unnamed else "Run 'catalogue load' to bring the library up to date.")
    return 0 if well else 1


def _list(arguments: argparse.Namespace, settings: Settings, out: Console) -> int:
    titles: list[Title] = []
    with _home(settings) as home:
        for kind in _kinds(arguments):
            state = home.state(kind)
            if state.damage:
                raise LibraryError(state.damage)
            if state.exists:
                titles += home.titles(kind)
    if arguments.section:
        wanted = Sections.of(title.section for title in titles).resolve(arguments.section)
        titles = [title for title in titles if title.section == wanted]
    titles.sort(key=lambda title: (title.kind, title.section, title.title))
    if arguments.json:
        for title in titles:
            out.out(json.dumps(asdict(title), ensure_ascii=False), highlight=False)
        return 0
    table = Table("kind", "section", "title", "romanised", "file", box=None)
    for title in titles:
        table.add_row(
            *(escape(text) for text in (title.kind, title.section, title.title, title.romanized, title.filename))
        )
    out.print(table)
    out.print(f"{len(titles)} titles")
    return 0


def _search(arguments: argparse.Namespace, settings: Settings, out: Console) -> int:
    if not arguments.request.strip():
        raise ToyError('the request is empty: say what a child would, such as "the one about the spider"')
    if settings.qdrant_url is not None:
        # The copy that visits search is brought up to date first, as the worker does.
        watcher = CatalogueWatcher(settings)
        watcher.check_blocking()
        watcher.close_blocking()
    cache = prepare(settings)
    found = False
    services = {"music": cache.music, "story": cache.stories}
    for kind in _kinds(arguments):
        service = services[kind]
        if not service.ready:
            out.print(f"{FOLDERS[kind]}: {escape(service.status.reason)}")
            continue
        started = time.perf_counter()
        answer = service.search_blocking(arguments.request, arguments.section)
        milliseconds = (time.perf_counter() - started) * 1000
        found = found or answer.title is not None
        if arguments.json:
            nearest = [asdict(title) for title in answer.nearest]
            line = {"kind": kind, "answer": answer.kind, "confidence": answer.confidence, "nearest": nearest}
            out.out(json.dumps(line, ensure_ascii=False), highlight=False)
            continue
        chosen = "not found" if answer.title is None else f"{answer.title.section}: {answer.title.title}"
        out.print(f"{FOLDERS[kind]}: {escape(chosen)}  ({answer.confidence:.2f}, {milliseconds:.1f} ms)")
        for title in answer.nearest:
            if title != answer.title:
                out.print(f"  near: {escape(f'{title.section}: {title.title}')}")
    return 0 if found else 1


def _kinds(arguments: argparse.Namespace) -> tuple[Kind, ...]:
    return (arguments.kind,) if arguments.kind else KINDS


@contextmanager
def _home(settings: Settings) -> Iterator[Home]:
    with closing(open_home(settings)) as home:
        yield home


def _tell_problems(files: CatalogueFiles, out: Console) -> None:
    if files.problems:
        out.print(f"[yellow]{len(files.problems)} entries cannot be used:[/yellow]")
        _tell_lines(out, [str(problem) for problem in files.problems], _SHOWN * 5)


def _tell_titles(out: Console, what: str, titles: Sequence[Title]) -> None:
    if titles:
        out.print(f"  {len(titles)} {what}:")
        _tell_lines(out, [f"{title.section}/{title.title} ({title.filename})" for title in titles])


def _tell_lines(out: Console, lines: Sequence[str], most: int = _SHOWN) -> None:
    for line in lines[:most]:
        out.print(f"    {escape(printable(line))}")
    if len(lines) > most:
        out.print(f"    … and {len(lines) - most} more")
