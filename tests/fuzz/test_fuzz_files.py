"""Whatever stands in the files that people write: each problem is told as what it is, and the rest is read."""

from __future__ import annotations

import asyncio
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from fuzz_support import JSON, NUMBERS, TEXT, fuzz, objects
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from agent.briefing.desk import BriefingDesk
from agent.briefing.device_file import load_device_file
from agent.briefing.profile import Briefing
from agent.errors import LibraryError, SettingsError
from agent.library.catalogue import _tell_problems
from agent.library.catalogue_files import CatalogueFiles, read_catalogue
from agent.library.payload import from_payload, to_payload
from agent.library.titles import embedded_text
from agent.settings import Settings, load_settings
from agent.values import DeviceMac

MAC = DeviceMac("68:25:dd:ba:39:78")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


# --- the device file

TOML_VALUES = st.sampled_from(
    [
        "1",
        "true",
        '"text"',
        "[]",
        "{}",
        "nan",
        "1979-05-27",
        '"\\ud800"',
        "'''",
        "0x" + "f" * 5000,
        "9" * 5000,
        "[[[[",
        "-0",
    ]
) | TEXT.map(lambda text: json.dumps(text))
TOML_LINES = st.builds(
    lambda key, value: f"{key} = {value}",
    st.sampled_from(["prompt", "language", "chat_history", "agent_id", "child", "voice", "name", "age", "a.b.c", '""']),
    TOML_VALUES,
) | st.sampled_from(
    [
        "[default]",
        "[default.child]",
        "[modes]",
        f'[devices."{MAC}"]',
        f'[devices."{MAC}".child]',
        "[devices.x]",
        "[[devices]]",
    ]
)
TOML = st.lists(TOML_LINES | TEXT, max_size=10).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@fuzz()
@given(TOML | st.binary(max_size=200))
@example(b"x = " + b"9" * 5000)
@example(b"[default]\nchat_history = 0x" + b"f" * 5000)
@example(b"x = " + b"[" * 50_000)
@example(b'[devices."68:25:dd:ba:39:78"]\n[devices."68:25:dd:ba:39:78"]')
@example(b'["68:25:dd:ba:39:78"]')
@example(b"a" + b".a" * 5000 + b" = 1")
def test_any_device_file_is_read_or_refused_and_a_visit_goes_on(folder: Path, content: bytes) -> None:
    path = folder / "devices.toml"
    path.write_bytes(content)
    told = ""
    try:
        load_device_file(path)
    except SettingsError as error:
        told = str(error)
    assert not told or told.startswith("DEVICE_FILE: ")
    assert MAC not in told
    settings = Settings(_env_file=None, device_file=path, state_dir=folder / "state", manager_api_deadline_ms=30_000)  # type: ignore[call-arg]

    async def visit() -> Briefing:
        async with BriefingDesk(settings, mac=MAC, room_name="room") as desk:
            await desk.peek()
            return await desk.fetch()

    assert asyncio.run(visit()).chat_history in (0, 1, 2)


# --- the settings

NAMES = st.sampled_from([name.upper() for name in Settings.model_fields])
VALUES = (
    TEXT
    | NUMBERS.map(str)
    | JSON.map(json.dumps)
    | st.sampled_from(
        [
            "25%",
            "٣%",
            "http://[::1",
            "http://a:99999",
            "https://u:p@h",
            "redis://",
            "../..",
            "a\0b",
            "UTC/../../etc/passwd",
            "['",
        ]
    )
)


@fuzz()
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4))
@example({"STATE_DIR": "a\0b"})
@example({"TIME_ZONE": "a\0b"})
@example({"PRICES": "[" * 50_000})
@example({"PRICES": '{"m":{"input":' + "9" * 5000 + "}}"})
@example({"MAX_ROOMS": "9" * 5000})
def test_any_value_is_a_setting_or_named_in_the_error(values: dict[str, str]) -> None:
    try:
        made = Settings(_env_file=None, **{name.lower(): value for name, value in values.items()})
    except ValueError:
        pass
    else:
        assert 0 <= made.max_rooms <= 10_000
        assert made.drain_timeout <= 86_400
        for path in (made.state_dir, made.models_path, made.greetings_dir, made.device_file, made.catalogue_dir):
            assert path is None or "\0" not in str(path)


@fuzz()
@given(
    st.lists(st.builds(lambda name, value: f"{name}={value}", NAMES | TEXT, VALUES) | TEXT, max_size=6).map(
        lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
    )
    | st.binary(max_size=120)
)
@example(b"LIVEKIT_URL=\xff")
@example(b"LIVEKIT_API_SECRET=\xffvery-secret")
@example("\ufeffMAX_ROOMS=-1".encode("utf-16"))
@example(b"STATE_DIR=a\0b")
def test_any_env_file_is_read_or_each_wrong_variable_named(folder: Path, content: bytes) -> None:
    path = folder / ".env"
    path.write_bytes(content)
    told = ""
    try:
        load_settings(path)
    except SettingsError as error:
        told = str(error)
    assert all(": " in line for line in told.splitlines())
    assert "very-secret" not in told


# --- the catalogue

FILENAMES = (
    st.sampled_from(["a.mp3", "b/c.mp3", "../x.mp3", "/etc/passwd", "a\0.mp3", "\ud800.mp3", "C:x.mp3", "x" * 2000])
    | TEXT
)
ENTRIES = (
    st.builds(
        lambda filename, rest: {**rest, "filename": filename},
        FILENAMES,
        objects("romanized", "alternatives", "keywords"),
    )
    | objects("filename", "romanized", "alternatives", "keywords")
    | JSON
)
METADATA = (
    st.dictionaries(TEXT, ENTRIES, max_size=5).map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=120)
)
FOLDERS = st.sampled_from([b"Hindi", b"Fairy Tales", b"\xff\xfe", b"\n", b"...", b"~", "हिन्दी".encode()])
GOOD = {"The good one": {"filename": "good.mp3", "keywords": ["dogs"]}}


def write(root: Path, kind: str, name: bytes, content: bytes) -> None:
    section = os.path.join(os.fsencode(root / kind), name)  # noqa: PTH118 — names that are no text
    os.makedirs(section, exist_ok=True)  # noqa: PTH103 — as above
    with open(os.path.join(section, b"metadata.json"), "wb") as file:  # noqa: PTH118, PTH123 — as above
        file.write(content)


def forget(root: Path) -> None:
    for place, folders, files in os.walk(os.fsencode(root), topdown=False):
        for name in files:
            os.unlink(os.path.join(place, name))  # noqa: PTH108, PTH118 — as above
        for name in folders:
            os.rmdir(os.path.join(place, name))  # noqa: PTH106, PTH118 — as above


@fuzz()
@given(trees=st.lists(st.tuples(st.sampled_from(["music", "stories"]), FOLDERS, METADATA), max_size=4))
@example(trees=[("music", b"Hindi", json.dumps({"\ud800": {"filename": "a.mp3"}}).encode())])
@example(trees=[("music", b"\xff\xfe", json.dumps({"A": {"filename": "a.mp3"}, "B": 1}).encode())])
@example(trees=[("music", b"Hindi", b'{"A":{"filename":"a.mp3","keywords":[' + b"9" * 5000 + b"]}}")])
@example(trees=[("stories", b"Hindi", b"[" * 50_000)])
@example(trees=[("music", b"Hindi", json.dumps({"A": {"filename": "a.mp3", "keywords": [1e999, None, [1]]}}).encode())])
def test_any_catalogue_is_read_as_far_as_it_can_be(folder: Path, trees: list[tuple[str, bytes, bytes]]) -> None:
    root = folder / "catalogue"
    root.mkdir(exist_ok=True)
    try:
        for kind, name, content in trees:
            write(root, kind, name, content)
        write(root, "stories", b"Good", json.dumps(GOOD).encode())
        files = read_catalogue(root)
        assert "The good one" in {title.title for title in files.titles}
        check(files, root)
        told = Console(file=(folder / "told").open("w", encoding="utf-8"), width=200)
        _tell_problems(files, told)
        told.file.close()
    finally:
        forget(root)


def check(files: CatalogueFiles, root: Path) -> None:
    assert len({title.id for title in files.titles}) == len(files.titles)
    for title in files.titles:
        assert files.audio(title).resolve().is_relative_to(root.resolve())
        for text in (title.title, title.section, title.romanized, *title.alternatives, *title.keywords, title.filename):
            text.encode()
        embedded_text(title).encode()
        kept = json.loads(json.dumps(to_payload(title)))
        assert from_payload(title.kind, title.id, kept).id == title.id
    for problem in files.problems:
        assert problem.reason
        assert not any(unicodedata.category(sign) == "Cc" for sign in str(problem))
        str(problem).encode()


@fuzz()
@given(
    payload=objects("title", "language", "category", "romanized", "alternatives", "keywords", "filename") | st.just({})
)
def test_any_point_of_a_collection_is_a_title_or_refused(payload: dict[str, Any]) -> None:
    try:
        title = from_payload("music", 7, payload)
    except LibraryError:
        return
    json.dumps(to_payload(title)).encode()
    embedded_text(title).encode()


HEADS = (
    b"",
    b"ID3\x04\0\0\0\0\x1f\x7f",
    b"ID3\x03\0\x80\0\0\0\x10",
    b"OggS\0\2",
    b"fLaC\0\0\0\x22",
    b"RIFF\0\0\0\0WAVE",
)
HEADS += (b"\0\0\0\x18ftypM4A ", b"\xff\xfb\x90\x44", b"\xff\xf1\x50\x80", b"OggS\0\2" + b"\0" * 20 + b"\1\x13OpusHead")
SOUNDS = st.builds(lambda head, rest: head + rest, st.sampled_from(HEADS), st.binary(max_size=300))


@fuzz()
@given(st.sampled_from([".mp3", ".m4a", ".ogg", ".opus", ".flac", ".wav", ".aac"]), SOUNDS)
def test_any_sound_file_without_metadata_is_a_title_or_a_problem(folder: Path, suffix: str, content: bytes) -> None:
    section = folder / "tagged" / "music" / "English"
    section.mkdir(parents=True, exist_ok=True)
    path = section / f"song{suffix}"
    path.write_bytes(content)
    try:
        files = read_catalogue(folder / "tagged")
        assert len(files.titles) + len(files.problems) == 1
        check(files, folder / "tagged")
    finally:
        path.unlink()


def test_links_that_lead_nowhere_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    nowhere = "x" * 300  # longer than any file's name may be: the system call fails
    write(tmp_path, "stories", b"Good", json.dumps(GOOD).encode())
    (tmp_path / "stories" / "Link").symlink_to(nowhere)
    (tmp_path / "stories" / "Metadata").mkdir()
    (tmp_path / "stories" / "Metadata" / "metadata.json").symlink_to(nowhere)
    (tmp_path / "stories" / "Loop").symlink_to("Loop")
    files = read_catalogue(tmp_path)
    assert [title.title for title in files.titles] == ["The good one"]
    assert {problem.file for problem in files.problems} == {"stories/Link", "stories/Metadata"}
