from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import MediaError
from agent.library.titles import Title
from agent.speaker.media_url import FileLocation, HttpLocation, locate

BASE = "https://media.example.org/toy/"


def song(filename: str, section: str = "Hindi", kind: str = "music") -> Title:
    return Title(1, kind, "x", section, filename=filename)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("title", "path"),
    [
        (song("Baby Shark.mp3", "English"), "music/English/Baby%20Shark.mp3"),
        (song("लकड़ी की काठी.mp3"), "music/Hindi/%E0%A4%B2%E0%A4%95%E0%A4%A1%E0%A4%BC%E0%A5%80%20%E0%A4%95%E0%A5%80%20"
         "%E0%A4%95%E0%A4%BE%E0%A4%A0%E0%A5%80.mp3"),
        (song("小星星.m4a", "中文"), "music/%E4%B8%AD%E6%96%87/%E5%B0%8F%E6%98%9F%E6%98%9F.m4a"),
        (song("a?b#c%2f&d+e.mp3"), "music/Hindi/a%3Fb%23c%252f%26d%2Be.mp3"),
        (song("part 1/one.mp3", "Fairy Tales", "story"), "stories/Fairy%20Tales/part%201/one.mp3"),
        (song("..mp3"), "music/Hindi/..mp3"),
        (song("http:evil.mp3"), "music/Hindi/http%3Aevil.mp3"),
    ],
)  # fmt: skip
def test_a_title_has_one_quoted_address(title: Title, path: str) -> None:
    location = locate(title, base_url=BASE, catalogue_dir=Path("/elsewhere"))
    assert isinstance(location, HttpLocation)
    assert str(location.url) == BASE + path


@pytest.mark.parametrize(
    "filename",
    ["", ".", "..", "../x.mp3", "a/../../x.mp3", "/etc/passwd", "//evil.example/x.mp3", "http://evil.example/x.mp3",
     "a\\..\\x.mp3", "a//b.mp3", "a/", " x.mp3", "x\0.mp3", "x\n.mp3", "x\r\nHost: evil", "a/./b", "\ud800.mp3",
     "x" * 2000, "ल" * 500],
)  # fmt: skip
@pytest.mark.parametrize("base", [BASE, None])
def test_a_name_that_leads_astray_is_refused(filename: str, base: str | None) -> None:
    with pytest.raises(MediaError) as refused:
        locate(song(filename), base_url=base, catalogue_dir=Path("/srv"))
    assert refused.value.reason == ("name" if filename else "missing")


@pytest.mark.parametrize("section", ["", "..", "a/b", "/", "\0"])
def test_a_section_that_leads_astray_is_refused(section: str) -> None:
    with pytest.raises(MediaError) as refused:
        locate(song("x.mp3", section), base_url=BASE, catalogue_dir=None)
    assert refused.value.reason == "name"


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(MediaError, match="MEDIA_BASE_URL"):
        locate(song("x.mp3"), base_url=None, catalogue_dir=None)
    with pytest.raises(MediaError, match="neither"):
        locate(song("x.mp3", kind="film"), base_url=BASE, catalogue_dir=None)


def content(location: FileLocation) -> bytes:
    descriptor = location.open()
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_files_open_below_the_tree_only(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    folder = tree / "music" / "Hindi"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "song.mp3").write_text("sound")
    (folder / "inside.mp3").symlink_to("song.mp3")
    (folder / "outside.mp3").symlink_to(tmp_path / "secret")
    (folder / "loop.mp3").symlink_to("loop.mp3")
    (folder / "folder.mp3").mkdir()
    os.mkfifo(folder / "pipe.mp3")
    (tree / "music" / "Away").symlink_to(tmp_path)

    def place(filename: str, section: str = "Hindi") -> FileLocation:
        location = locate(song(filename, section), base_url=None, catalogue_dir=tree)
        assert isinstance(location, FileLocation)
        return location

    assert content(place("song.mp3")) == b"sound"
    assert content(place("inside.mp3")) == b"sound"
    for filename in ("outside.mp3", "loop.mp3", "folder.mp3", "pipe.mp3", "missing.mp3"):
        with pytest.raises(MediaError):
            place(filename).open()
    with pytest.raises(MediaError, match="leaves"):
        place("secret", "Away").open()


def test_a_tree_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real" / "music" / "Hindi").mkdir(parents=True)
    (tmp_path / "real" / "music" / "Hindi" / "x").write_text("sound")
    (tmp_path / "link").symlink_to("real")
    location = locate(song("x"), base_url=None, catalogue_dir=tmp_path / "link")
    assert isinstance(location, FileLocation)
    assert content(location) == b"sound"


def test_either_spelling_of_an_accent_finds_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "music" / "French"
    folder.mkdir(parents=True)
    (folder / "Fre\u0300re.mp3").write_text("sound")
    location = locate(song("Frère.mp3", "French"), base_url=None, catalogue_dir=tmp_path)
    assert isinstance(location, FileLocation)
    assert content(location) == b"sound"
