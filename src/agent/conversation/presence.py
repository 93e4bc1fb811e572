"""What the device is told of the agent's state: the session's, with everything that sounds counted as speaking."""

from __future__ import annotations

from collections.abc import Callable

from agent.device.messages import AgentState, Outgoing, agent_state_changed


class Presence:
    """Turns the session's states and the speaker's sound into the contract's `agent_state_changed`.

    A device sees `speaking` whenever it hears sound, and its end: never `initializing` again after the first sound,
    because only `speaking -> listening` ends a speech for it, and never anything else straight after `speaking`.
    `send` takes the message.
    """

    def __init__(self, send: Callable[[Outgoing], None]) -> None:
        self._send = send
        self._session: AgentState = "initializing"
        self._audible = False
        self._sounded = False
        self.shown: AgentState = "initializing"

    def session_state(self, state: AgentState) -> None:
        """The session's state has changed."""
        self._session = state
        self._show()

    def audible(self, audible: bool) -> None:
        """The speaker has begun or ended to sound."""
        self._audible = audible
        self._sounded = self._sounded or audible
        self._show()

    def _show(self) -> None:
        state = self._session
        if self._audible:
            state = "speaking"
        elif state == "initializing" and self._sounded:
            state = "listening"
        if state == self.shown:
            return
        if self.shown == "speaking" and state != "listening":
            self._change("listening")
        self._change(state)

    def _change(self, state: AgentState) -> None:
        old, self.shown = self.shown, state
        self._send(agent_state_changed(old, state))
