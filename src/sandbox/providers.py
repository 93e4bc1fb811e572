"""All provider stand-ins on one port, with a control API. Alone: `python -m sandbox.providers --port N`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import weakref
from collections.abc import Collection, Sequence
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.elevenlabs_api import ElevenLabsApi
from sandbox.faults import Behaviour, swallow_cut
from sandbox.hearing import Hearing
from sandbox.mem0_api import Mem0Api
from sandbox.openai_audio import SpeechApi, TranscriptionApi
from sandbox.openai_chat import ChatApi, bad_request, read_json
from sandbox.realtime_api import RealtimeApi
from sandbox.replies import Script, script_from_json
from sandbox.voices import Voice, espeak

HOST = "127.0.0.1"


class ProviderServer:
    """OpenAI, ElevenLabs and Mem0 on one port of 127.0.0.1.

    `sentences` builds the recogniser's grammar; `answers` are fixed transcripts instead. `voice` speaks for all three
    voices (default: each hums its own note). `models` are all that OpenAI's three services have (None: any).
    `connections` counts those that carried a request.

    Control: `GET /_control` shows every service's state, `POST /_control/{service}` sets delays and faults (see
    `Behaviour.update`), `PUT /_control/script` the replies, `GET /_control/calls` what the model, the recogniser and
    the voices were asked.
    """

    def __init__(
        self,
        *,
        script: Script | None = None,
        sentences: Sequence[str] = (),
        answers: Sequence[str] = (),
        voice: Voice | None = None,
        port: int = 0,
        key: str | None = None,
        models: Collection[str] | None = None,
    ) -> None:
        self._hearing = Hearing(sentences) if sentences and not answers else None
        self.chat = ChatApi(script, key=key, models=models)
        self.transcription = TranscriptionApi(hearing=self._hearing, answers=list(answers), key=key, models=models)
        self.speech = SpeechApi(voice, key=key, models=models)
        self.realtime = RealtimeApi(self.transcription, script, voice, key=key)
        self.elevenlabs = ElevenLabsApi(voice, key=key)
        self.mem0 = Mem0Api(key=key)
        self.port = port
        self.connections = 0
        self._seen: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()
        self._runner: web.AppRunner | None = None

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """The services by the names of the control API."""
        return {
            "chat": self.chat.behaviour,
            "transcription": self.transcription.behaviour,
            "speech": self.speech.behaviour,
            "realtime": self.realtime.behaviour,
            "elevenlabs": self.elevenlabs.behaviour,
            "mem0-search": self.mem0.search_behaviour,
            "mem0-add": self.mem0.add_behaviour,
        }

    @property
    def url(self) -> str:
        """Root: also Mem0's host."""
        return f"http://{HOST}:{self.port}"

    @property
    def v1(self) -> str:
        """Base URL of OpenAI's and ElevenLabs' APIs."""
        return f"{self.url}/v1"

    async def __aenter__(self) -> Self:
        if self._hearing is not None:
            await self._hearing.start()
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._hearing is not None:
            await self._hearing.close()

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again, with all that was recorded."""
        app = web.Application(client_max_size=64 << 20, middlewares=[self._count, swallow_cut])
        for part in (self.chat, self.transcription, self.speech, self.realtime, self.elevenlabs, self.mem0):
            app.router.add_routes(part.routes())
        app.router.add_get("/_control", self._show)
        app.router.add_get("/_control/calls", self._calls)
        app.router.add_put("/_control/script", self._script)
        app.router.add_post("/_control/{service}", self._set)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and cut every connection, as a killed service does."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        server = runner.server
        for connection in list(server.connections) if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is not None and request.transport not in self._seen:
            self._seen.add(request.transport)
            self.connections += 1
        return await handler(request)

    async def _show(self, _: web.Request) -> web.Response:
        return web.json_response({name: behaviour.snapshot() for name, behaviour in self.behaviours.items()})

    async def _set(self, request: web.Request) -> web.Response:
        behaviour = self.behaviours.get(request.match_info["service"])
        if behaviour is None:
            raise web.HTTPNotFound(text=f"services: {', '.join(self.behaviours)}")
        try:
            behaviour.update(await read_json(request))
        except ValueError as error:
            raise bad_request(str(error)) from None
        return web.json_response(behaviour.snapshot())

    async def _script(self, request: web.Request) -> web.Response:
        try:
            self.chat.script = self.realtime.script = script_from_json(await read_json(request))
        except ValueError as error:
            raise bad_request(str(error)) from None
        return web.json_response({"ok": True})

    async def _calls(self, _: web.Request) -> web.Response:
        calls: dict[str, Any] = {
            "chat": [{"messages": c.request.messages, "sent": c.sent, "finished": c.finished} for c in self.chat.calls],
            "transcription": [{"text": c.text, "seconds": c.seconds} for c in self.transcription.calls],
            "speech": [{"text": c.text, "voice": c.voice, "finished": c.finished} for c in self.speech.calls],
            "elevenlabs": [
                {"text": c.text, "voice": c.voice_id, "finished": c.finished} for c in self.elevenlabs.contexts
            ],
            "mem0": [{"user_id": a.user_id, "messages": a.messages} for a in self.mem0.added],
        }
        return web.json_response(calls)


async def _serve(options: argparse.Namespace) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    voice = espeak() if options.voice == "espeak" else None
    server = ProviderServer(sentences=options.sentence, answers=options.answer, voice=voice, port=options.port)
    async with server:
        print(f"providers on {server.url}", flush=True)
        await ended.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.providers", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 picks a free one and prints it")
    parser.add_argument("--sentence", action="append", default=[], help="a sentence the recogniser knows; repeatable")
    parser.add_argument("--answer", action="append", default=[], help="a fixed transcript instead; repeatable")
    parser.add_argument("--voice", choices=("hum", "espeak"), default="hum", help="how the voices sound")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
