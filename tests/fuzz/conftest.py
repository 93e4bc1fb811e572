"""A real socket that answers what it is told, in a loop of its own: hypothesis' tests are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fuzz_support import Answering, Run


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine to its end."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Answering]:
    """The socket."""
    server = Answering()
    run(server.__aenter__())
    yield server
    run(server.__aexit__(None, None, None))
