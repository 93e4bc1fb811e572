"""Tools of MCP servers: a real server's join, one that is away costs nothing but its tools."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from agent.conversation.mcp_tools import McpTools
from sandbox.processes import REPO, ManagedProcess, free_port, plain_environment

PROGRAM = """
import sys
from mcp.server import MCPServer

server = MCPServer("toys")


@server.tool()
def roll_dice(sides: int = 6) -> str:
    "Roll a dice."
    return f"one of {sides}"


server.run(transport="streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
"""


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, ManagedProcess]]:
    port = free_port()
    process = ManagedProcess(
        "an MCP server", [sys.executable, "-c", PROGRAM, str(port)], env=plain_environment({}), cwd=REPO
    )
    async with process:
        await process.wait_for_line(lambda line: "running on" in line.text, timeout=30, what="its address")
        yield f"http://127.0.0.1:{port}/mcp", process


async def test_tools_of_a_server_join_and_one_that_is_away_costs_only_its_own(
    server: tuple[str, ManagedProcess],
) -> None:
    servers = McpTools([f"http://127.0.0.1:{free_port()}/s/a-key-in-its-path/mcp", server[0]])
    try:
        with capture_logs() as lines:
            names = [tool.id for tool in await servers.fetch()]
    finally:
        await servers.aclose()
    assert names == ["roll_dice"]
    (line,) = lines
    assert (line["server"], "a-key-in-its-path" in str(line)) == ("127.0.0.1", False)


async def test_a_server_that_hangs_is_left_all_the_same(server: tuple[str, ManagedProcess]) -> None:
    address, process = server
    servers = McpTools([address])
    assert await servers.fetch()
    process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            with capture_logs() as lines:
                await servers.aclose()
    finally:
        process.send_signal(signal.SIGCONT)
    assert [line["error"] for line in lines] == ["TimeoutError"]


async def test_no_server_is_no_tool() -> None:
    servers = McpTools([])
    assert await servers.fetch() == []
    await servers.aclose()
