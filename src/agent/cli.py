"""The command line: `python -m agent COMMAND`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from agent.errors import SettingsError, ToyError
from agent.settings import Settings, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage or settings."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in {"greetings", "catalogue"}:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"The configuration is wrong:\n{error}", file=sys.stderr)
        return 2
    try:
        return int(args.run(settings, args, rest))
    except ToyError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent", description="The voice of a toy: a LiveKit Agents worker.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: object, help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        return command

    add("start", _start, "Serve rooms.")
    add("dev", _dev, "Serve rooms, with readable logs and no drain on Ctrl-C.")
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


def _start(settings: Settings, _args: argparse.Namespace, _rest: Sequence[str]) -> int:
    return _serve(settings, devmode=False)


def _dev(settings: Settings, _args: argparse.Namespace, _rest: Sequence[str]) -> int:
    return _serve(settings, devmode=True)
