"""A catalogue folder of a few titles, and the command as an operator runs it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_tree import TREE, Listed, Run, write_tree

from agent.library import catalogue
from agent.settings import Settings


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The folder of TREE."""
    write_tree(tmp_path / "tree", TREE)
    return tmp_path / "tree"


@pytest.fixture
def settings(tmp_path: Path, model_dir: Path) -> Settings:
    return Settings(_env_file=None, state_dir=tmp_path / "state", model_dir=model_dir)  # type: ignore[call-arg]


@pytest.fixture
def run(settings: Settings) -> Run:
    """`catalogue ARGUMENTS` with the settings (or others as `given`): the exit code and all that was printed."""

    def call(*arguments: object, given: Settings = settings) -> tuple[int, str]:
        out = io.StringIO()
        code = catalogue.run([str(part) for part in arguments], given, Console(file=out, width=200, soft_wrap=True))
        return code, out.getvalue()

    return call


@pytest.fixture
def listed(run: Run) -> Listed:
    """The titles that `catalogue list` tells."""

    def call(*arguments: object) -> list[dict[str, Any]]:
        code, out = run("list", "--json", *arguments)
        assert code == 0
        return [json.loads(line) for line in out.splitlines()]

    return call
