"""`python -m agent console`: talk to the agent on this machine, with its microphone and speaker, or typing."""

from __future__ import annotations

import sys
from typing import Any

from livekit.agents.cli import _legacy

from agent.errors import SettingsError
from agent.health import WorkerState
from agent.settings import Settings
from agent.worker import build_server


class _Console(_legacy.AgentsConsole):
    """The framework's console without its note that another program will replace it one day."""

    def print(self, child: Any, *, tag: str = "", tag_style: Any = None) -> None:
        if tag != "Deprecated":
            super().print(child, tag=tag, tag_style=tag_style)


def run_console(settings: Settings, *, text: bool, input_device: str | None, output_device: str | None) -> int:
    """Run until Ctrl-C. Raises SettingsError with what to install where this machine has no sound system."""
    try:
        import sounddevice  # noqa: F401 — the framework's console needs it even for typing
    except OSError:
        raise SettingsError(
            "console: PortAudio is missing. On Debian and Ubuntu: sudo apt-get install libportaudio2"
        ) from None
    _legacy.AgentsConsole._instance = _Console()
    single = settings.model_copy(update={"num_idle_processes": 0, "job_executor": "thread"})
    server = build_server(single, WorkerState(single))
    _legacy._run_console(
        server=server,
        input_device=input_device,
        output_device=output_device,
        mode="text" if text else "audio",
        record=False,
        log_level=settings.log_level if sys.stdout.isatty() else "WARNING",
    )
    return 0
