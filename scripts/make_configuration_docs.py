#!/usr/bin/env python3
"""Write .env.example and the README's configuration table from the settings: `--check` only compares."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- configuration: scripts/make_configuration_docs.py -->", "<!-- end of configuration -->"


def sections() -> dict[str, list[str]]:
    """Names of the settings under the headings of their class, in its order."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in inspect.getsource(Settings).splitlines():
        if match := re.fullmatch(r"    # (.+)", line):
            heading = match[1]
        elif (match := re.match(r"    ([a-z][a-z0-9_]+): ", line)) and match[1] in Settings.model_fields:
            found.setdefault(heading, []).append(match[1])
    return found


def text_of(value: Any) -> str:
    """A default as it would be written in `.env`."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def env_example() -> str:
    """Every setting with its meaning; defaults are commented out."""
    lines = [
        "# Copy to .env. What is set in the environment wins. Lines that are commented out show the default, or an",
        "# example where there is none.",
    ]
    for heading, names in sections().items():
        lines += ["", f"# --- {heading}"]
        for name in names:
            field = Settings.model_fields[name]
            example = str((field.examples or [""])[0])
            default = text_of(field.default) if field.default_factory is None else ""
            lines.append(f"# {' '.join((field.description or '').split())}")
            lines.append(f"# {name.upper()}={default or example}")
    return "\n".join(lines) + "\n"


def table() -> str:
    """The same as a Markdown table a heading."""
    parts = [BEGIN]
    for heading, names in sections().items():
        parts += ["", f"**{heading}**", "", "| variable | default | meaning |", "| --- | --- | --- |"]
        for name in names:
            field = Settings.model_fields[name]
            default = text_of(field.default) if field.default_factory is None else ""
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            parts.append(f"| `{name.upper()}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "\n".join([*parts, "", END])


def main() -> int:
    """Write, or with `--check` compare and fail where something is out of date."""
    readme = ROOT / "README.md"
    old = readme.read_text()
    start, stop = old.index(BEGIN), old.index(END) + len(END)
    wanted = {ROOT / ".env.example": env_example(), readme: old[:start] + table() + old[stop:]}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} does not say what the settings are: run scripts/make_configuration_docs.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
