"""What the worker last found out about the library's home, for every process: one small file beside the snapshots."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agent.library.titles import Kind
from agent.state import private_dir

_FILE: Final = "status.json"


class HomeStatus(BaseModel):
    """`reason` is empty where all is well, else a sentence; `since` and `checked_at` are Unix seconds.

    `retryable`: it may become well by itself.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    reason: str = ""
    retryable: bool = True
    since: float = 0.0
    checked_at: float = 0.0


_STATUSES: Final = TypeAdapter(dict[Kind, HomeStatus])


def read_status(root: Path) -> dict[Kind, HomeStatus]:
    """The last status of each kind; empty where nothing was ever checked, or the file cannot be read."""
    try:
        return _STATUSES.validate_json((root / _FILE).read_bytes())
    except (OSError, ValidationError):
        return {}


def write_status(root: Path, found: Mapping[Kind, HomeStatus]) -> None:
    """Replace the statuses in one rename; `since` is kept where the reason is still the same."""
    private_dir(root)
    before = read_status(root)
    now = time.time()
    merged = dict(before)
    for kind, status in found.items():
        old = before.get(kind)
        since = old.since if old is not None and old.reason == status.reason else now
        merged[kind] = status.model_copy(update={"since": since, "checked_at": now})
    draft = root / f".{_FILE}.{os.getpid()}"
    draft.write_bytes(_STATUSES.dump_json(merged))
    draft.replace(root / _FILE)
