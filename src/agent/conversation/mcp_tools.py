"""Tools of MCP servers, which join a conversation that has already begun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog
from livekit.agents.llm import Tool
from livekit.agents.llm.mcp import MCPServerHTTP

log = structlog.get_logger(__name__)

DEADLINE: Final = 10.0
"""Seconds a server has to tell its tools."""


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
            log.warning("the tools of an MCP server are not there", server=server.url, error=f"{type(error).__name__}")
            return []

    async def aclose(self) -> None:
        """Close every connection; one that cannot be closed is logged."""
        outcomes = await asyncio.gather(*(server.aclose() for server in self._servers), return_exceptions=True)
        for server, outcome in zip(self._servers, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                log.warning("an MCP server cannot be left in order", server=server.url, error=type(outcome).__name__)
