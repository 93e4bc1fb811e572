"""Making recordings: with espeak-ng for real, and with the real requests to stand-ins of OpenAI and ElevenLabs."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from rich.console import Console

from agent.errors import MediaError, SettingsError
from agent.greeting import espeak
from agent.greeting.audio import SAMPLE_RATE, to_wave, write_atomically
from agent.greeting.bank import GreetingBank
from agent.greeting.commands import run
from agent.greeting.script import read_script
from agent.settings import Settings

SCRIPT = """
[voices.espeak-ng]
en = "en-us"

[voices.openai]
"*" = "nova"
hi = "shimmer"

[voices.elevenlabs]
"*" = "Voice1"

[[recording]]
id = "en_default"
language = "en"
text = "Hello!"

[[recording]]
id = "hi_child_friendly"
language = "hi"
style = "child_friendly"
text = "नमस्ते!"
"""

SOUND = np.round(np.sin(np.arange(SAMPLE_RATE) * 0.1) * 9000).astype("<i2").tobytes()


class Command:
    """`python -m agent greetings …` on a folder of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.output = ""
        self._settings = Settings(_env_file=None, greetings_dir=folder, **settings)  # type: ignore[call-arg]
        if not (folder / "script.toml").exists():
            (folder / "script.toml").write_text(SCRIPT, encoding="utf-8")

    def __call__(self, *argv: str) -> int:
        buffer = io.StringIO()
        status = run(argv, settings=self._settings, console=Console(file=buffer, width=200))
        self.output = buffer.getvalue()
        return status

    @property
    def manifest(self) -> dict[str, dict[str, Any]]:
        document = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return {entry["file"]: entry for entry in document["recordings"]}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.wav")}


def test_espeak_makes_recordings_the_bank_plays_untouched(tmp_path: Path) -> None:
    make = Command(tmp_path)
    assert make("make") == 0
    assert "2 made, 0 up to date, 0 failed" in make.output
    bank = GreetingBank.load(tmp_path)
    assert bank.problems == ()
    assert [(item.id, item.text, item.language, item.style, item.maker) for item in bank.greetings] == [
        ("en_default", "Hello!", "en", "default", "espeak-ng"),
        ("hi_child_friendly", "नमस्ते!", "hi", "child_friendly", "espeak-ng"),
    ]
    assert all(0.2 < item.duration < 3 for item in bank.greetings)
    for item in bank.greetings:
        assert to_wave(item.pcm) == (tmp_path / f"{item.id}.wav").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_up_to_date_is_left_and_what_changed_is_made(tmp_path: Path) -> None:
    make = Command(tmp_path)
    assert make("make") == 0
    before = times(tmp_path)
    assert make("make") == 0
    assert "0 made, 2 up to date" in make.output
    assert times(tmp_path) == before

    (tmp_path / "script.toml").write_text(SCRIPT.replace("Hello!", "Good day!"), encoding="utf-8")
    assert make("make") == 0
    after = times(tmp_path)
    assert after["en_default.wav"] != before["en_default.wav"]
    assert after["hi_child_friendly.wav"] == before["hi_child_friendly.wav"]
    assert make.manifest["en_default.wav"]["text"] == "Good day!"

    (tmp_path / "hi_child_friendly.wav").unlink()
    assert make("make") == 0
    assert "1 made, 1 up to date" in make.output
    assert make("make", "--only", "en_*", "--force") == 0
    assert "1 made, 0 up to date" in make.output


def test_somebodys_own_recording_is_kept_unless_forced(tmp_path: Path) -> None:
    make = Command(tmp_path)
    own = {"file": "en_default.wav", "language": "en", "text": "Hi, it's Grandma!", "maker": "person"}
    extra = {"file": "extra.wav", "language": "en", "text": "Boo!", "maker": "person"}
    (tmp_path / "manifest.json").write_text(json.dumps({"recordings": [extra, own]}))
    (tmp_path / "en_default.wav").write_bytes(b"her voice")
    assert make("make", "--maker", "espeak-ng") == 0
    assert (tmp_path / "en_default.wav").read_bytes() == b"her voice"
    assert make.manifest["en_default.wav"]["text"] == "Hi, it's Grandma!"
    assert make.manifest["extra.wav"]["text"] == "Boo!"
    assert make("make", "--force") == 0
    assert make.manifest["en_default.wav"]["maker"] == "espeak-ng"


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/{tail:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def test_openai_is_asked_for_samples_in_the_scripts_voice(tmp_path: Path) -> None:
    asked: list[tuple[str, str | None, Any]] = []

    async def speak(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers.get("Authorization"), await request.json()))
        return web.Response(body=SOUND)

    async with served(speak) as url:
        make = Command(tmp_path, tts_base_url=url, tts_api_key="sk-test", tts_model="gpt-4o-mini-tts")
        assert await asyncio.to_thread(make, "make", "--maker", "openai") == 0
    body = {"model": "gpt-4o-mini-tts", "response_format": "pcm"}
    assert sorted(asked, key=lambda item: str(item[2]["voice"])) == [
        ("/v1/audio/speech", "Bearer sk-test", {**body, "voice": "nova", "input": "Hello!"}),
        ("/v1/audio/speech", "Bearer sk-test", {**body, "voice": "shimmer", "input": "नमस्ते!"}),
    ]
    assert {entry["maker"] for entry in make.manifest.values()} == {"openai"}
    assert GreetingBank.load(tmp_path).greetings[0].duration == pytest.approx(1.0, abs=0.01)
    # Without a maker named, the one who made it is asked again, so nothing is to be done.
    assert await asyncio.to_thread(Command(tmp_path, openai_api_key="sk-test"), "make") == 0


async def test_elevenlabs_is_asked_by_its_protocol_and_a_voice_may_be_named(tmp_path: Path) -> None:
    asked: list[tuple[str, str | None, Any]] = []

    async def speak(request: web.Request) -> web.Response:
        asked.append((request.path_qs, request.headers.get("xi-api-key"), await request.json()))
        return web.Response(body=SOUND)

    async with served(speak) as url:
        make = Command(tmp_path, elevenlabs_base_url=url, elevenlabs_api_key="key", elevenlabs_model="flash")
        argv = ("make", "--maker", "elevenlabs", "--voice", "Abc9", "--only", "hi_child_friendly")
        assert await asyncio.to_thread(make, *argv) == 0
    body = {"text": "नमस्ते!", "model_id": "flash", "language_code": "hi"}
    assert asked == [("/v1/text-to-speech/Abc9?output_format=pcm_24000", "key", body)]
    assert make.manifest["hi_child_friendly.wav"]["voice"] == "Abc9"


async def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    answers = iter([web.Response(status=429, headers={"Retry-After": "0"}), web.Response(status=503)])

    async def speak(_: web.Request) -> web.Response:
        return next(answers, None) or web.Response(body=SOUND)

    async with served(speak) as url:
        make = Command(tmp_path, tts_base_url=url)
        assert await asyncio.to_thread(make, "make", "--maker", "openai", "--only", "en_default") == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: web.Response(status=400), "refused the request (status 400)"),
        (lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}), "refused the request"),
        (lambda: web.Response(status=500), "status 500"),
        (lambda: web.Response(body=b""), "not 16-bit samples"),
        (lambda: web.Response(body=b"abc"), "not 16-bit samples"),
        (lambda: web.Response(body=bytes(2 * SAMPLE_RATE)), "is silent"),
        (lambda: web.Response(body=SOUND * 11), "is longer than 10 s"),
        (lambda: web.Response(body=bytes(5 * 2**20)), "larger than a greeting"),
        (lambda: web.Response(body=b"RIFF" + b"x" * 400), "cannot be decoded"),
    ],
)
async def test_a_bad_answer_is_told_and_what_was_there_stays(
    tmp_path: Path, answer: Callable[[], web.Response], said: str
) -> None:
    make = Command(tmp_path)
    assert await asyncio.to_thread(make, "make") == 0
    before = times(tmp_path)

    async def speak(_: web.Request) -> web.Response:
        return answer()

    async with served(speak) as url:
        failing = Command(tmp_path, tts_base_url=url)
        assert await asyncio.to_thread(failing, "make", "--maker", "openai", "--only", "en_default") == 1
    assert "en_default.wav" in failing.output
    assert said in failing.output
    assert times(tmp_path) == before
    assert make.manifest["en_default.wav"]["maker"] == "espeak-ng"


async def test_a_refused_key_stops_the_run_and_is_never_shown(tmp_path: Path) -> None:
    lines = "\n".join(f'[[recording]]\nid = "r{n}"\nlanguage = "en"\ntext = "Hello {n}!"\n' for n in range(30))
    (tmp_path / "script.toml").write_text(f'[voices.openai]\n"*" = "nova"\n{lines}')
    asked = 0

    async def refuse(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=401, text="sk-very-secret is wrong")

    async with served(refuse) as url:
        make = Command(tmp_path, tts_base_url=url, tts_api_key="sk-very-secret")
        assert await asyncio.to_thread(make, "make", "--maker", "openai") == 1
    assert asked < 30
    assert "0 made, 0 up to date, 30 failed" in make.output
    assert "the key was refused" in make.output
    assert "sk-very-secret" not in make.output


async def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    make = Command(tmp_path, tts_base_url="http://127.0.0.1:9/v1")
    assert await asyncio.to_thread(make, "make", "--maker", "openai", "--only", "en_default") == 1
    assert "cannot be reached" in make.output


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["make", "--maker", "openai"], "OPENAI_API_KEY"),
        (["make", "--maker", "elevenlabs"], "ELEVENLABS_API_KEY"),
        (["make", "--maker", "edge-tts"], "names no voice of edge-tts"),
        (["make", "--only", "fr_*"], "no recording 'fr_*'"),
        (["make", "--script", "/nonexistent.toml"], "cannot be read"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(tmp_path: Path, argv: list[str], said: str) -> None:
    make = Command(tmp_path)
    assert make(*argv) == 2
    assert said in make.output
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("argv", [[], ["dance"], ["make", "--maker", "parrot"]])
def test_wrong_arguments_are_status_2(tmp_path: Path, argv: list[str]) -> None:
    assert Command(tmp_path)(*argv) == 2


def test_a_broken_manifest_is_not_overwritten(tmp_path: Path) -> None:
    make = Command(tmp_path)
    for text, said in (("{", "is not JSON"), ('{"recordings":[{"file":"../x"}]}', "leaves the folder")):
        (tmp_path / "manifest.json").write_text(text)
        assert make("make") == 2
        assert said in make.output
        assert (tmp_path / "manifest.json").read_text() == text


def test_a_voice_that_espeak_does_not_have_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "script.toml").write_text(SCRIPT.replace('"en-us"', '"en-moon"'), encoding="utf-8")
    make = Command(tmp_path)
    assert make("make") == 1
    assert "1 made, 0 up to date, 1 failed" in make.output
    assert "no voice en-moon" in make.output
    assert [greeting.id for greeting in GreetingBank.load(tmp_path).greetings] == ["hi_child_friendly"]


def test_the_list_shows_what_is_there_and_what_is_wrong(tmp_path: Path) -> None:
    command = Command(tmp_path)
    assert command("list") == 1
    assert "manifest.json: is missing" in command.output
    assert command("make") == 0
    assert command("list") == 0
    assert "hi_child_friendly" in command.output
    (tmp_path / "en_default.wav").write_bytes(b"")
    assert command("list") == 1
    assert "en_default.wav: cannot be decoded" in command.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recording = 5", "recording"),
        ("[[recording]", "is not TOML"),
        ("", "recording"),
        (SCRIPT.replace('"hi"\nstyle', '"🧸"\nstyle'), "is not a language"),
        (SCRIPT.replace("hi_child_friendly", "../x"), "recording.1.id"),
        (SCRIPT.replace("hi_child_friendly", "en_default"), "named twice: en_default"),
        (SCRIPT + '\n[digits]\nen = ["zero"]', "digits.en"),
        (SCRIPT.replace("text =", "txet ="), "recording.0"),
    ],
)
def test_a_wrong_script_says_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "script.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=said.replace(".", r"\.")):
        read_script(path)


def test_espeak_speaks_every_language_and_differs_by_voice_and_pace() -> None:
    spoken = {language: espeak.synthesise("Hello 你好 नमस्ते", language) for language in ("en", "en-GB", "zh", "hi")}
    for pcm, rate in spoken.values():
        assert rate == 22_050
        assert len(pcm) > rate / 4
        assert np.abs(pcm.astype(int)).max() > 3000
    slow, _ = espeak.synthesise("one two three four", words_per_minute=80)
    fast, _ = espeak.synthesise("one two three four", words_per_minute=240)
    assert len(slow) > 1.5 * len(fast)


@pytest.mark.parametrize(
    ("text", "voice"), [("", None), (" ", None), ("a\0b", None), ("x" * 30_000, None), ("x", "qq")]
)
def test_espeak_refuses_what_it_cannot_speak(text: str, voice: str | None) -> None:
    with pytest.raises(MediaError):
        espeak.synthesise(text, voice=voice)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
