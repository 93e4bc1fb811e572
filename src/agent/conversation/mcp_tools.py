"""Tools of MCP servers, which join a conversation that has already begun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import structlog
from livekit.agents.llm import Tool
from livekit.agents.llm.mcp import MCPServerHTTP

log = structlog.get_logger(__name__)

DEADLINE: Final = 10.0
"""Seconds a server has to tell its tools."""
CLOSING: Final = 2.0
"""Seconds it has to say goodbye: the visit's room and process wait for it."""


class McpTools:
    """The servers of `MCP_SERVERS`. `fetch` once; `aclose` ends their connections."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._servers = [MCPServerHTTP(address) for address in addresses]

    async def fetch(self) -> list[Tool]:
        """The tools of every server that answers in time; each that does not costs a warning."""
        found = await asyncio.gather(*(self._tools(server) for server in self._servers))
        return [tool for tools in found for tool in tools]

    async def _tools(self, server: MCPServerHTTP) -> list[Tool]:
        try:
            async with asyncio.timeout(DEADLINE):
                await server.initialize()
                return list(await server.list_tools())
        except Exception as error:  # noqa: BLE001 — whatever the client raises, it costs these tools and nothing else
            log.warning("the tools of an MCP server are not there", server=_host(server), error=type(error).__name__)
            return []

    async def aclose(self) -> None:
        """Close every connection; one that cannot be closed, or not within CLOSING seconds, is logged."""
        closing = (asyncio.wait_for(server.aclose(), CLOSING) for server in self._servers)
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        for server, outcome in zip(self._servers, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                log.warning("an MCP server cannot be left in order", server=_host(server), error=type(outcome).__name__)


def _host(server: MCPServerHTTP) -> str:
    """The server's host alone: the path of its address may be a key."""
    return urlsplit(server.url).hostname or "?"
