"""Checks of this machine: settings, greetings, model files, disk, limits, memory, and what waits in the outbox."""

from __future__ import annotations

import asyncio
import resource
import shutil
import tempfile
from contextlib import ExitStack
from typing import Final

from agent.briefing.device_file import load_device_file
from agent.doctor.checks import Check, Finding, failed, ok, skipped, warning
from agent.errors import OutboxError
from agent.greeting.bank import GreetingBank
from agent.health import MB_OF_WORKER, MB_PER_ROOM, MB_PER_WARM_PROCESS, default_capacity, memory_mb, most_idle
from agent.library import model_files
from agent.outbox.home import FORWARD, existing_stores
from agent.outbox.items import DEAD_KEPT, OutboxStats
from agent.settings import Settings, misspelt
from agent.state import private_dir

_LEAST_DISK_MB: Final = 200
_GOOD_DISK_MB: Final = 2048
_FILES_PER_ROOM: Final = 16
_LEAST_FILES: Final = 1024
_OLD_S: Final = 300.0


def machine_checks(settings: Settings) -> list[Check]:
    """All of them."""

    def check(name: str, look: object, advice: str) -> Check:
        return Check(name, lambda: asyncio.to_thread(look, settings), advice)  # type: ignore[arg-type]

    return [
        check("settings", check_settings, "correct the named variables in the environment or .env"),
        check("greetings", check_greetings, "set GREETINGS_DIR to the folder that holds manifest.json"),
        check("device file", check_device_file, "correct the file that DEVICE_FILE names"),
        check("model files", check_model_files, "run: python -m agent download-files"),
        check("disk", check_disk, "set STATE_DIR to a folder that this user may write to"),
        check("file limits", check_files, "raise the limit: ulimit -n 65536, or LimitNOFILE= in the service file"),
        check("memory", check_memory, "lower MAX_ROOMS or MAX_IDLE_PROCESSES, or give the machine more memory"),
        check("outbox", check_outbox, "see that STATE_DIR can be written to and has space"),
    ]


def check_settings(settings: Settings) -> Finding:
    """They could be read, or there would be none; what is still as it came is named."""
    lacking = []
    if settings.device_salt.get_secret_value() == "toy":
        lacking.append("DEVICE_SALT is the default, so devices can be recognised in logs by anyone who knows it")
    if settings.log_personal_data:
        lacking.append("LOG_PERSONAL_DATA lets names and words into the log")
    wrong = misspelt()
    advice = ["correct the names in .env"] if wrong else []
    if lacking:
        advice.append("set DEVICE_SALT to a long random text, and LOG_PERSONAL_DATA to false")
    if advice:
        return warning("; ".join([*wrong, *lacking]), "; ".join(advice))
    return ok("complete")


def check_greetings(settings: Settings) -> Finding:
    """Recordings load, and the language that is used where none is named is among them."""
    bank = GreetingBank.load(settings.greetings_dir)
    spoken = sorted({recording.language for recording in bank.recordings if recording.purpose == "greeting"})
    if not spoken:
        why = f": {bank.problems[0]}" if bank.problems else ""
        return failed(
            f"no recorded greeting in {settings.greetings_dir}{why}",
            "set GREETINGS_DIR, or make recordings: python -m agent greetings make",
        )
    if bank.problems:
        return warning(
            f"{len(bank.problems)} of the recordings cannot be used, the first: {bank.problems[0]}",
            "make them again: python -m agent greetings make",
        )
    if settings.greeting_language.split("-")[0].lower() not in {language.split("-")[0] for language in spoken}:
        return warning(
            f"there is no greeting in {settings.greeting_language}, only in {', '.join(spoken)}",
            "set GREETING_LANGUAGE to one of these, or make recordings: python -m agent greetings make",
        )
    return ok(f"{len(bank.recordings)} recordings; greetings in {', '.join(spoken)}")


def check_device_file(settings: Settings) -> Finding:
    """It can be read, where it is used."""
    if settings.manager_api_url is not None:
        return skipped("not used: MANAGER_API_URL is set")
    if settings.device_file is None:
        return skipped("not configured", "DEVICE_FILE gives each device its prompt and child without a Manager API")
    load_device_file(settings.device_file)
    return ok(f"{settings.device_file} can be read")


def check_model_files(settings: Settings) -> Finding:
    """They are there and whole."""
    files = model_files.find(settings)
    size = sum(path.stat().st_size for path in (files.graph, files.tokenizer)) / 2**20
    return ok(f"{model_files.model_name(settings)}, {size:.0f} MB, checksums right")


def check_disk(settings: Settings) -> Finding:
    """STATE_DIR can be written to and has room."""
    folder = settings.state_dir.absolute()
    try:
        with tempfile.TemporaryFile(dir=private_dir(folder)):
            pass
    except OSError as error:
        return failed(
            f"STATE_DIR {folder} cannot be written to: {error.strerror}",
            "set STATE_DIR to a folder that this user may write to",
        )
    free_mb = shutil.disk_usage(folder).free // 2**20
    advice = "free space there, or set STATE_DIR to a larger disk"
    if free_mb < _LEAST_DISK_MB:
        return failed(f"only {free_mb} MB free at {folder}: the outbox and the caches will fail", advice)
    if free_mb < _GOOD_DISK_MB:
        return warning(f"only {free_mb} MB free at {folder}", advice)
    return ok(f"{free_mb / 1024:.1f} GB free at {folder}")


def check_files(settings: Settings) -> Finding:
    """The worker may open what its rooms need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rooms = settings.max_rooms or default_capacity(settings)
    needed = max(_LEAST_FILES, rooms * _FILES_PER_ROOM)
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warning(
            f"{soft} open files allowed, {needed} wanted for {rooms} rooms",
            "raise the limit: ulimit -n 65536, or LimitNOFILE= in the service file",
        )
    return ok(f"{'no limit' if soft == resource.RLIM_INFINITY else soft} open files allowed (hard limit {hard})")


def check_memory(settings: Settings) -> Finding:
    """Rooms and warm processes fit."""
    rooms = settings.max_rooms or default_capacity(settings)
    warm = most_idle(settings)
    needed = MB_OF_WORKER + rooms * MB_PER_ROOM + warm * MB_PER_WARM_PROCESS
    total, available = memory_mb()
    told = f"{rooms} rooms and up to {warm} warm processes want about {needed} MB"
    advice = "lower MAX_ROOMS or MAX_IDLE_PROCESSES, or give the machine more memory"
    if needed > total:
        return failed(f"{told}, there are {total} MB", advice)
    if needed > available:
        return warning(f"{told}, {available} MB of {total} are free just now", advice)
    return ok(f"{told}, {available} MB of {total} are free")


def check_outbox(settings: Settings) -> Finding:
    """Nothing waits for long, nothing was refused, neither in this machine's file nor in Redis."""
    found: list[OutboxStats] = []
    dead = 0
    with ExitStack() as stack:
        for home, store in existing_stores(settings).items():
            stack.callback(store.close)
            try:
                found.extend(store.stats(("chat", "memory", FORWARD)).values())
                dead += len(store.dead_items(DEAD_KEPT))
            except OutboxError:
                if home == "file":
                    raise
                # Redis has a check of its own, which says so; meanwhile the file stands in for it.
    if not found:
        return ok("empty")
    waiting = sum(view.depth for view in found)
    oldest = max(view.oldest_age_s for view in found)
    if waiting and oldest > _OLD_S:
        return warning(
            f"{waiting} items wait, the oldest for {oldest / 60:.0f} minutes",
            "see that a worker runs and that the Manager API and Mem0 answer",
        )
    if dead:
        return warning(
            f"{dead} items were refused for ever",
            "see: python -m agent outbox list; when the reason is mended: outbox retry",
        )
    return ok(f"{waiting} items wait, none for long")
