"""The device file: the same questions, answers and errors as the Manager API, and clear words about a wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest
from briefing_support import ALL_LIVE, desk_for
from structlog.testing import capture_logs

from agent.briefing.device_file import load_device_file
from agent.briefing.profile import DEFAULT_CHAT_HISTORY, ChatType, Child, Models, Part, Source, Voice
from agent.errors import NotFound, Rejected, SettingsError
from agent.values import DeviceMac
from sandbox.manager_api import DEMO_MAC, ManagerApi

EXAMPLE = Path(__file__).resolve().parents[2] / "devices.example.toml"
STRANGER = DeviceMac("00:00:00:00:00:02")
FILE = """
[default]
prompt = "default prompt"
language = "en"
chat_history = 0
[default.voice]
type = "edge_tts"
voice = "en-US-AnaNeural"
[default.child]
name = "Everybody"

[devices.6825DDBA3978]
agent_id = "agent-5"
language = "hi"
[devices.6825DDBA3978.child]
name = "मीरा"
age = 5
interests = ["खेल"]
id = 17

[devices."00:00:00:00:00:01"]
chat_history = 1
voice = { type = "elevenlabs", voice_id = "abc", model = "m" }

[modes]
"Story Teller" = "tell stories"
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "devices.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


async def test_a_device_of_the_file(tmp_path: Path) -> None:
    directory = load_device_file(written(tmp_path, FILE))
    assert await directory.agent_id(DEMO_MAC) == "agent-5"
    assert await directory.agent_prompt(DEMO_MAC) == "default prompt"
    assert await directory.agent_models(DEMO_MAC, "room") == Models(Voice("edge", "en-US-AnaNeural"), 0, "hi")
    assert await directory.child_profile(DEMO_MAC) == Child("मीरा", 5, interests=("खेल",), profile_id="17")
    assert await directory.update_mode("agent-5", "Story Teller") == "tell stories"
    with pytest.raises(Rejected):
        await directory.update_mode("agent-5", "story teller")
    line = {"session_id": "room", "chat_type": ChatType.USER, "content": "hi", "report_time": 1}
    assert await directory.report_chat(DEMO_MAC, **line) is False  # type: ignore[arg-type]
    await directory.health()
    await directory.aclose()


async def test_a_child_is_never_inherited_by_a_device_of_its_own(tmp_path: Path) -> None:
    directory = load_device_file(written(tmp_path, FILE))
    other = DeviceMac("000000000001")
    assert await directory.child_profile(other) is None
    assert await directory.agent_id(other) == "local"
    assert await directory.agent_models(other, "room") == Models(Voice("elevenlabs", "abc", "m"), 1, "en")


async def test_default_answers_for_strangers(tmp_path: Path) -> None:
    directory = load_device_file(written(tmp_path, FILE))
    assert await directory.child_profile(STRANGER) == Child("Everybody")
    assert await directory.agent_prompt(STRANGER) == "default prompt"


async def test_without_default_a_stranger_is_not_found(tmp_path: Path) -> None:
    directory = load_device_file(written(tmp_path, '[devices."68:25:dd:ba:39:78"]\nagent_id = "a"\n'))
    assert await directory.agent_models(DEMO_MAC, "room") == Models(None, DEFAULT_CHAT_HISTORY, None)
    for question in (directory.agent_id, directory.agent_prompt, directory.child_profile):
        with pytest.raises(NotFound):
            await question(STRANGER)
    with pytest.raises(NotFound):
        await directory.agent_models(STRANGER, "room")


async def test_the_desk_answers_from_the_file_at_once_and_keeps_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    path = written(tmp_path, FILE)
    async with desk_for(None, state, device_file=path) as desk:
        peeked = await desk.peek()
        fetched = await desk.fetch()
        assert await desk.update_mode("Story Teller") == "tell stories"
    assert peeked is not None
    assert peeked.language == fetched.language == "hi"
    assert peeked.child == fetched.child == Child("मीरा", 5, interests=("खेल",), profile_id="17")
    assert fetched.sources == ALL_LIVE
    assert fetched.problems == {}
    assert not state.exists()
    written(tmp_path, FILE.replace("मीरा", "Asha"))
    async with desk_for(None, state, device_file=path) as desk:
        briefing = await desk.peek()
    assert briefing is not None
    assert briefing.child is not None
    assert briefing.child.name == "Asha"


async def test_the_manager_api_wins_over_the_file(tmp_path: Path) -> None:
    async with ManagerApi() as api, desk_for(api, tmp_path, device_file=written(tmp_path, FILE)) as desk:
        assert (await desk.fetch()).agent_id == "agent-1"


async def test_a_broken_file_is_loud_and_does_not_end_the_visit(tmp_path: Path) -> None:
    path = written(tmp_path, "[default\n")
    with capture_logs() as logs:
        async with desk_for(None, tmp_path, device_file=path) as desk:
            assert await desk.peek() is None
            briefing = await desk.fetch()
            with pytest.raises(NotFound):
                await desk.update_mode("Cheeko")
    assert briefing.sources == dict.fromkeys(Part, Source.DEFAULT)
    assert briefing.problems == {"device_file": "SettingsError"}
    assert [log["log_level"] for log in logs] == ["error"]
    assert str(path) in logs[0]["problem"]


def test_the_shipped_example_is_right() -> None:
    load_device_file(EXAMPLE)


async def test_the_example_answers(tmp_path: Path) -> None:
    async with desk_for(None, tmp_path, device_file=EXAMPLE) as desk:
        briefing = await desk.fetch()
    assert briefing.sources == ALL_LIVE
    assert briefing.problems == {}
    assert briefing.child is not None
    assert briefing.language == "en-IN"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[default\n", "not valid TOML"),
        ("a = [" * 5000, "not valid TOML"),
        (b"\xff\xfe[default]", "not UTF-8"),
        ("[defaults]\n", "defaults: unknown key"),
        ('[default]\nagentid = "x"\n', "default.agentid: unknown key"),
        ("[default]\nprompt = 7\n", "default.prompt: Input should be a valid string"),
        ('[default]\nprompt = " "\n', "default.prompt:"),
        ('[default]\nlanguage = "english please"\n', "default.language:"),
        ("[default]\nchat_history = 3\n", "default.chat_history:"),
        ('[default.voice]\nvoice = "nova"\n', "default.voice.type: Field required"),
        ('[default.voice]\ntype = "edge"\nspeed = 2\n', "default.voice.speed: unknown key"),
        ("[default.child]\nage = 5\n", "default.child.name: Field required"),
        ('[default.child]\nname = "x"\nage = "five"\n', "default.child.age:"),
        ('[default.child]\nname = "x"\nageGroup = "y"\n', "default.child.ageGroup: unknown key"),
        ("[devices.toy]\n", "devices (section 1 of 1): not a MAC address"),
        ("[devices.000000000001]\n[devices.682222222222]\nx = 1\n", "devices (section 2 of 2).x: unknown key"),
        ('[devices."00:00:00:00:00:01"]\n[devices.000000000001]\n', "two sections name the same MAC"),
        ("devices = 3\n", "devices:"),
        ("[modes]\nCheeko = 3\n", "modes.Cheeko:"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_device_file(path)
    assert str(caught.value).startswith("DEVICE_FILE: ")
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "682222222222" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, words in [(tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(SettingsError, match=words):
            load_device_file(path)
