"""Names of sections and files, whoever wrote them: what is opened lies below the catalogue or the media server."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from fuzz_support import TEXT, fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import MediaError
from agent.library.titles import Title, confined
from agent.speaker.media_url import FileLocation, HttpLocation, locate

BASE = "https://media.example.org/toy"
PIECES = [
    "..",
    ".",
    "/",
    "\\",
    "//",
    "~",
    "%2e%2e",
    "%2f",
    "..;",
    "\0",
    "\n",
    "?",
    "#",
    "@evil.example",
    "http:",
    "file:",
]
PIECES += ["song.mp3", "outside.mp3", "Hindi", "Away", "secret"]
PIECES += ["e\u0301", "\u00e9", "\u2024\u2024", "\uff0e\uff0e", "\uff0f"]
NAMES = st.lists(st.sampled_from(PIECES) | TEXT, max_size=6).map("".join)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with links that lead out of it, and a secret beside it."""
    root = tmp_path_factory.mktemp("media")
    (root / "secret").write_text("secret")
    folder = root / "tree" / "music" / "Hindi"
    folder.mkdir(parents=True)
    (folder / "song.mp3").write_text("sound")
    (folder / "outside.mp3").symlink_to(root / "secret")
    (root / "tree" / "music" / "Away").symlink_to(root)
    return root / "tree"


@fuzz(2.0)
@given(section=NAMES, filename=NAMES)
@example(section="Hindi", filename="x" * 300)
@example(section="x" * 300, filename="song.mp3")
@example(section="Hindi", filename="/".join(["\u0958" * 80] * 4))  # longer still in its other spelling
@example(section="Away", filename="secret")
@example(section="Hindi", filename="outside.mp3")
@example(section="Hindi", filename="song.mp3/song.mp3")
@example(section="Hindi", filename="a/" * 400 + "b")
def test_a_file_is_below_the_catalogue_or_not_opened(tree: Path, section: str, filename: str) -> None:
    try:
        location = locate(Title(1, "music", "x", section, filename=filename), base_url=None, catalogue_dir=tree)
        assert isinstance(location, FileLocation)
        descriptor = location.open()
    except MediaError:
        return
    try:
        real = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert real.is_relative_to(tree.resolve())
        assert os.read(descriptor, 100) == b"sound"
    finally:
        os.close(descriptor)


@fuzz(2.0)
@given(section=NAMES, filename=NAMES)
@example(section="a", filename="..%2f..%2fx")
@example(section="@evil.example", filename=":80#?/x")
@example(section="\uff0e\uff0e", filename="\uff0e\uff0e/x")
def test_an_address_is_below_the_media_server(section: str, filename: str) -> None:
    try:
        location = locate(Title(1, "music", "x", section, filename=filename), base_url=BASE, catalogue_dir=None)
    except MediaError:
        return
    assert isinstance(location, HttpLocation)
    url = location.url
    assert (url.scheme, url.host, url.user, url.query_string, url.fragment) == (
        "https",
        "media.example.org",
        None,
        "",
        "",
    )
    parts = url.raw_path.split("/")
    assert parts[:3] == ["", "toy", "music"]
    assert not {".", "..", ""} & {unquote(part) for part in parts[1:]}
    assert [unquote(part) for part in parts[3:]] == [section, *filename.split("/")]


@fuzz(2.0)
@given(NAMES)
def test_a_name_that_the_catalogue_takes_stays_in_its_folder(filename: str) -> None:
    if confined(filename):
        assert Path(os.path.normpath(Path("/catalogue/section") / filename)).is_relative_to("/catalogue/section")
