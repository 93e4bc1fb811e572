"""The stand-in Manager API: real HTTP, the whole contract, and delays and faults that are set call by call as it runs.

`python -m sandbox.manager_api --port 8002` serves it by itself; `/_sandbox/…` then does what the methods do here.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from agent.errors import IdentityError
from agent.values import DeviceMac
from sandbox.faults import Behaviour, Fault, swallow_cut

DEMO_MAC = DeviceMac("68:25:dd:ba:39:78")
DEMO_SECRET = "sandbox-secret"
CONTENT_MAX = 1000


class Call(StrEnum):
    """The calls of the contract."""

    AGENT_ID = "agent-id"
    AGENT_PROMPT = "agent-prompt"
    AGENT_MODELS = "agent-models"
    CHILD_PROFILE = "child-profile"
    UPDATE_MODE = "update-mode"
    CHAT_REPORT = "chat-report"
    HEALTH = "health"


BRIEFING_CALLS = (Call.AGENT_ID, Call.AGENT_PROMPT, Call.AGENT_MODELS, Call.CHILD_PROFILE)

PROMPT = (
    "You are Cheeko, a playful friend{% if child_name %} of {{ child_name }}, who is {{ child_age }} years old"
    " and likes {{ child_interests }}{% endif %}. Speak in one or two short sentences. {{ emojiList }}\n<memory>"
)
MODES = {"Cheeko": PROMPT, "Story": "You tell short stories to {{ child_name }}.\n<memory>"}
MODELS = {
    "selected_module": {"TTS": "TTS_edge", "VAD": "VAD_silero"},
    "TTS": {"TTS_edge": {"type": "edge", "voice": "en-US-AnaNeural"}},
    "chat_history_conf": 1,
    "language": "en",
}
CHILD = {
    "name": "Asha",
    "age": 6,
    "ageGroup": "Early Childhood",
    "gender": "female",
    "interests": '["dinosaurs", "painting"]',
}


@dataclass
class Device:
    """One device as the Manager API knows it.

    `agent_id` None: no agent. `child` None: no profile. `bind_code`: must be bound first, with this code in `msg`.
    """

    agent_id: str | None = "agent-1"
    prompt: str = PROMPT
    models: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(MODELS)))
    child: dict[str, Any] | None = field(default_factory=lambda: dict(CHILD))
    bind_code: str | None = None


@dataclass(frozen=True)
class Override:
    """An answer in place of the right one, for the next `times` requests (None: until cleared).

    `body` is sent as it is with `status`; else the envelope of `code`, `msg` and `data`.
    """

    code: int = 0
    msg: str = "success"
    data: Any = None
    status: int = 200
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int | None = None


class Refusal(Exception):
    """An error of the contract: HTTP 200 with this code."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg


class ManagerApi:
    """The server: `async with ManagerApi() as api`, then `api.url`.

    `devices` answer by MAC; `reports` keeps every chat line received, repeats included; `behaviour[call]` counts
    requests and holds delays and faults. `secret` None: nobody is refused. `path` is the base URL's path.
    """

    def __init__(
        self,
        *,
        devices: Mapping[str, Device] | None = None,
        secret: str | None = DEMO_SECRET,
        path: str = "/toy",
        port: int = 0,
        modes: Mapping[str, str] = MODES,
    ) -> None:
        self.devices = {DeviceMac(mac): device for mac, device in (devices or {DEMO_MAC: Device()}).items()}
        self.secret = secret
        self.modes = dict(modes)
        self.reports: list[dict[str, Any]] = []
        self.requests: list[tuple[Call, dict[str, Any]]] = []
        self.behaviour = {call: Behaviour() for call in Call}
        self.in_flight = 0
        self.most_in_flight = 0
        self._overrides: dict[Call, Override] = {}
        self._path = path.rstrip("/")
        self._port = port
        self._runner: web.AppRunner | None = None
        self._clients: set[Any] = set()
        self._arrived = asyncio.Event()

    @property
    def url(self) -> str:
        """What MANAGER_API_URL should be."""
        return f"http://127.0.0.1:{self._port}{self._path}"

    @property
    def control_url(self) -> str:
        """Where `/_sandbox/…` is."""
        return f"http://127.0.0.1:{self._port}/_sandbox"

    @property
    def connections(self) -> int:
        """How many connections have carried requests."""
        return len(self._clients)

    def device(self, mac: str = DEMO_MAC) -> Device:
        """The device of this MAC, for changing it as the server runs."""
        return self.devices[DeviceMac(mac)]

    def count(self, call: Call | str) -> int:
        """How many requests a call has had."""
        return self.behaviour[Call(call)].requests

    async def until_called(self, call: Call | str, times: int = 1) -> None:
        """Return when a call has arrived so many times since the start."""
        while sum(arrived == call for arrived, _ in self.requests) < times:
            await self._arrived.wait()

    def delay(self, seconds: float, *calls: Call | str) -> None:
        """Answer `calls` (default: all) this much later."""
        for call in self._calls(calls):
            self.behaviour[call].first = seconds

    def fail(self, fault: Fault | str, *calls: Call | str, times: int | None = None) -> None:
        """Strike `calls` (default: all) with a fault of the sandbox's vocabulary."""
        for call in self._calls(calls):
            self.behaviour[call].fail(fault, times=times)

    def answer(self, override: Override, *calls: Call | str) -> None:
        """Answer `calls` (default: all) with something else."""
        for call in self._calls(calls):
            self._overrides[call] = override

    def lie(self, *calls: Call | str) -> None:
        """Answer success with data of a wrong shape."""
        self.answer(Override(data={"unexpected": [1, {"deep": None}], "name": 7}), *calls)

    def heal(self, *calls: Call | str) -> None:
        """End delays, faults and overrides of `calls` (default: all); what hangs is cut."""
        for call in self._calls(calls):
            self.behaviour[call].heal()
            self.behaviour[call].first = 0.0
            self._overrides.pop(call, None)

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[swallow_cut], client_max_size=4 << 20)
        app.add_routes(
            [
                web.get(self._path + "/agent/device/{mac}/agent-id", self._serve(Call.AGENT_ID, self._agent_id)),
                web.post(self._path + "/config/agent-prompt", self._serve(Call.AGENT_PROMPT, self._agent_prompt)),
                web.post(self._path + "/config/agent-models", self._serve(Call.AGENT_MODELS, self._agent_models)),
                web.post(
                    self._path + "/config/child-profile-by-mac", self._serve(Call.CHILD_PROFILE, self._child_profile)
                ),
                web.put(self._path + "/agent/update-mode", self._serve(Call.UPDATE_MODE, self._update_mode)),
                web.post(self._path + "/agent/chat-history/report", self._serve(Call.CHAT_REPORT, self._report)),
                web.get(self._path + "/health", self._serve(Call.HEALTH, self._health)),
                web.get("/_sandbox/state", self._control_state),
                web.post("/_sandbox/faults", self._control_faults),
                web.delete("/_sandbox/faults", self._control_heal),
                web.put("/_sandbox/devices/{mac}", self._control_device),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # The calls.

    async def _agent_id(self, request: web.Request, _body: dict[str, Any]) -> Any:
        return self._known(request.match_info["mac"]).agent_id

    async def _agent_prompt(self, _request: web.Request, body: dict[str, Any]) -> Any:
        return self._known(body.get("macAddress")).prompt

    async def _agent_models(self, _request: web.Request, body: dict[str, Any]) -> Any:
        if not isinstance(body.get("clientId"), str) or not isinstance(body.get("selectedModule"), dict):
            raise Refusal(10034, "clientId and selectedModule are required")
        return self._known(body.get("macAddress")).models

    async def _child_profile(self, _request: web.Request, body: dict[str, Any]) -> Any:
        child = self._known(body.get("macAddress"), bound=False).child
        if child is None:
            raise Refusal(500, "No child assigned to this device")
        return child

    async def _update_mode(self, _request: web.Request, body: dict[str, Any]) -> Any:
        agent_id, mode = body.get("agentId"), body.get("modeName")
        if not isinstance(agent_id, str) or not isinstance(mode, str):
            raise Refusal(10034, "agentId and modeName are required")
        owned = [device for device in self.devices.values() if device.agent_id == agent_id]
        if not owned or mode not in self.modes:
            raise Refusal(500, "agent or template not found")
        for device in owned:
            device.prompt = self.modes[mode]
        return self.modes[mode]

    async def _report(self, request: web.Request, body: dict[str, Any]) -> Any:
        required = {"macAddress": str, "sessionId": str, "chatType": int, "content": str, "reportTime": int}
        wrong = [name for name, kind in required.items() if not isinstance(body.get(name), kind)]
        if wrong or body["chatType"] not in (1, 2) or body.get("audioBase64") is not None:
            raise Refusal(10034, f"invalid: {', '.join(wrong) or 'chatType or audioBase64'}")
        device = self.devices.get(_mac(body["macAddress"]))
        if device is None or device.agent_id is None:
            return False
        key = request.headers.get("Idempotency-Key")
        self.reports.append({**body, "content": body["content"][:CONTENT_MAX], "idempotencyKey": key})
        return True

    async def _health(self, _request: web.Request, _body: dict[str, Any]) -> Any:
        return "UP"

    def _known(self, mac: Any, *, bound: bool = True) -> Device:
        device = self.devices.get(_mac(mac))
        if device is None:
            raise Refusal(10041, "Device not found")
        if bound and device.bind_code is not None:
            raise Refusal(10042, device.bind_code)
        return device

    def _serve(
        self, call: Call, handler: Callable[[web.Request, dict[str, Any]], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                return await self._answered(call, handler, request)
            finally:
                self.in_flight -= 1

        return serve

    async def _answered(
        self, call: Call, handler: Callable[[web.Request, dict[str, Any]], Awaitable[Any]], request: web.Request
    ) -> web.StreamResponse:
        self._clients.add(request.transport and request.transport.get_extra_info("peername"))
        fate = self.behaviour[call].take()
        body = await _json(request)
        self.requests.append((call, body))
        self._arrived.set()
        self._arrived = asyncio.Event()
        await fate.before_answer(request)
        override = self._take_override(call)
        status, headers = 200, {"Content-Type": "application/json"}
        if fate.nonsense:
            raw = b"<html><body>502 Bad Gateway</body></html>"
        elif override is not None and override.body is not None:
            status, raw = override.status, override.body
            headers = {**headers, **override.headers}
        else:
            envelope = await self._envelope(call, handler, request, body, override)
            raw = json.dumps(envelope).encode()
            if override is not None:
                status, headers = override.status, {**headers, **override.headers}
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(raw)
        await response.prepare(request)
        transport = request.transport
        if transport is None:  # the client has gone
            return response
        for chunk in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
            await fate.before_chunk(transport.abort, transport.close)
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _envelope(
        self,
        call: Call,
        handler: Callable[[web.Request, dict[str, Any]], Awaitable[Any]],
        request: web.Request,
        body: dict[str, Any],
        override: Override | None,
    ) -> dict[str, Any]:
        if override is not None:
            return {"code": override.code, "msg": override.msg, "data": override.data}
        try:
            if call is not Call.HEALTH and not self._admits(request):
                raise Refusal(401, "Unauthorized")
            return {"code": 0, "msg": "success", "data": await handler(request, body)}
        except Refusal as refusal:
            return {"code": refusal.code, "msg": refusal.msg, "data": None}

    def _admits(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        return self.secret is None or hmac.compare_digest(given.encode(), f"Bearer {self.secret}".encode())

    def _take_override(self, call: Call) -> Override | None:
        override = self._overrides.get(call)
        if override is None or override.times is None:
            return override
        if override.times <= 1:
            del self._overrides[call]
        else:
            self._overrides[call] = replace(override, times=override.times - 1)
        return override

    def _calls(self, calls: tuple[Call | str, ...]) -> list[Call]:
        return [Call(call) for call in calls] or list(Call)

    # The control API.

    async def _control_state(self, _request: web.Request) -> web.Response:
        """Requests, faults and delays per call, every report kept, connections opened."""
        calls = {call.value: behaviour.snapshot() for call, behaviour in self.behaviour.items()}
        return web.json_response({"calls": calls, "reports": self.reports, "connections": self.connections})

    async def _control_faults(self, request: web.Request) -> web.Response:
        """`{"child-profile": {"fault": "hang"}, "*": {"first": 0.5}, "agent-id": {"code": 10041, "msg": "…"}}`.

        Either the fields of `Behaviour.update`, or those of an answer in its place: `code`, `msg`, `data`, `status`,
        `times`; `{"lie": true}` answers with a wrong shape.
        """
        try:
            body = await _json(request)
            for name, values in body.items():
                calls = self._calls(() if name == "*" else (name,))
                if values.get("lie"):
                    self.lie(*calls)
                elif values.keys() & {"code", "msg", "data", "status"}:
                    self.answer(Override(**values), *calls)
                else:
                    for call in calls:
                        self.behaviour[call].update(values)
        except (ValueError, TypeError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"ok": True})

    async def _control_heal(self, _request: web.Request) -> web.Response:
        """End every delay, fault and override."""
        self.heal()
        return web.json_response({"ok": True})

    async def _control_device(self, request: web.Request) -> web.Response:
        """Make or change a device: `agent_id`, `prompt`, `models`, `child`, `bind_code`."""
        try:
            mac = DeviceMac(request.match_info["mac"])
            self.devices[mac] = replace(self.devices.get(mac, Device()), **await _json(request))
        except (IdentityError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(asdict(self.devices[mac]))


def _mac(value: Any) -> DeviceMac:
    try:
        return DeviceMac(value if isinstance(value, str) else "")
    except IdentityError:
        raise Refusal(10034, "macAddress is invalid") from None


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read() or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


async def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.manager_api", description=__doc__)
    parser.add_argument("--port", type=int, default=8002, help="0 picks a free one")
    parser.add_argument("--secret", default=DEMO_SECRET, help="what MANAGER_API_SECRET must be; empty: anything")
    parser.add_argument("--any-device", action="store_true", help="know every device, as the demo device")
    options = parser.parse_args()
    api = ManagerApi(port=options.port, secret=options.secret or None)
    if options.any_device:
        api.devices = EveryDevice(api.devices)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with api:
        print(json.dumps({"event": "ready", "url": api.url, "control": api.control_url}), flush=True)
        await stop.wait()


class EveryDevice(dict[DeviceMac, Device]):
    """Devices that come into being when asked for, each with an agent of its own."""

    def get(self, mac: Any, default: Any = None) -> Any:  # noqa: ARG002 — dict's signature
        if mac not in self:
            self[mac] = Device(agent_id=f"agent-{len(self) + 1}")
        return self[mac]


if __name__ == "__main__":
    asyncio.run(_main())
