"""`catalogue load | verify | list | search`: what is read from disk, what is told, what a second load does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
from small_tree import TREE, Listed, Run, write_tree

from agent.library.home import Entry
from agent.library.homes import open_home, snapshot_root
from agent.library.titles import Title, stable_id
from agent.settings import Settings
from sandbox.processes import REPO

SOUND = REPO / "sample" / "music" / "English" / "twinkle_twinkle.ogg"


def test_a_tree_is_loaded_listed_verified_and_searched(run: Run, listed: Listed, tree: Path) -> None:
    code, told = run("load", tree)
    assert code == 0
    assert "music: 3 added, 0 changed, 0 unchanged, 0 removed" in told
    assert "stories: 1 added, 0 changed, 0 unchanged, 0 removed" in told
    assert [(title["section"], title["title"]) for title in listed()] == [
        ("English", "Baby Shark Dance"),
        ("English", "The Wheels on the Bus"),
        ("Kannada", "ಚಂದಮಾಮ"),
        ("Bedtime", "The Tortoise and the Hare"),
    ]
    shark = listed()[0]
    assert (shark["alternatives"], shark["keywords"], shark["filename"]) == (["baby shark"], ["sea"], "shark.mp3")
    code, told = run("verify", tree)
    assert (code, "All is well." in told) == (0, True)
    code, told = run("search", "please play baby shark", "--kind", "music", "--json")
    answer = json.loads(told)
    assert (code, answer["answer"], answer["nearest"][0]["title"]) == (0, "found", "Baby Shark Dance")
    code, told = run("search", "despacito", "--kind", "music")
    assert (code, told.startswith("music: not found")) == (1, True)


@pytest.mark.parametrize("name", ["Kannada", "kannada", "kn", "ಕನ್ನಡ"])
def test_a_section_is_listed_by_any_of_its_names(run: Run, listed: Listed, tree: Path, name: str) -> None:
    run("load", tree)
    assert [title["title"] for title in listed("--section", name)] == ["ಚಂದಮಾಮ"]
    assert listed("--section", "Klingon") == []


def test_where_there_is_no_metadata_the_tags_of_the_sound_are_read(run: Run, listed: Listed, tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "music" / "English"
    (folder / "more").mkdir(parents=True)
    for name, tags in (
        ("01.ogg", {"title": "The Moon Song", "genre": "lullaby", "artist": "Nobody"}),
        ("more/hot_cross_buns.ogg", {}),
    ):
        shutil.copy(SOUND, folder / name)
        sound = mutagen.File(folder / name, easy=True)
        sound.delete()
        sound.update(tags)
        sound.save()
    (folder / "broken.mp3").write_text("no sound at all")
    (folder / "cover.jpg").write_text("not asked for")
    code, told = run("load", tmp_path / "tree")
    assert code == 1
    assert "1 entries cannot be used" in told
    assert "music/English/broken.mp3: " in told
    assert [(title["title"], title["filename"], title["keywords"]) for title in listed()] == [
        ("The Moon Song", "01.ogg", ["lullaby", "Nobody"]),
        ("hot cross buns", "more/hot_cross_buns.ogg", []),
    ]


def test_ids_stay_and_only_what_changed_is_loaded_again(run: Run, listed: Listed, tree: Path, tmp_path: Path) -> None:
    run("load", tree)
    before = {title["title"]: title["id"] for title in listed()}
    assert before["ಚಂದಮಾಮ"] == stable_id("music", "Kannada", "ಚಂದಮಾಮ")
    changed = json.loads(json.dumps(TREE))
    english = changed["music/English"]
    english["Row Your Boat"] = {"filename": "boat.mp3"}
    english["The Wheels on the Bus"] = english.pop("The Wheels on the Bus") | {"keywords": ["wheels"]}
    write_tree(tree, changed)
    _, told = run("load", tree)
    assert "music: 1 added, 1 changed, 2 unchanged, 0 removed" in told
    assert "stories: 0 added, 0 changed, 1 unchanged, 0 removed" in told
    after = {title["title"]: title["id"] for title in listed()}
    assert {name: after[name] for name in before} == before


def test_what_the_folder_no_longer_has_stays_until_it_is_pruned(run: Run, listed: Listed, tree: Path) -> None:
    run("load", tree)
    write_tree(tree, {"music/English": {"Baby Shark Dance": TREE["music/English"]["Baby Shark Dance"]}})
    code, told = run("load", tree)
    assert (code, "1 more are in the library and not in the folder" in told) == (0, True)
    assert len(listed()) == 4
    assert "music: 0 added, 0 changed, 2 unchanged, 1 removed" in run("load", tree, "--prune")[1]
    assert "The Wheels on the Bus" not in {title["title"] for title in listed()}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("not an object", "an object with a filename is expected"),
        ({}, "the filename is missing"),
        ({"filename": "../../etc/passwd"}, "the filename leaves its folder"),
        ({"filename": "x.mp3", "alternatives": 7}, "alternatives: a list of texts is expected"),
        ({"filename": "x.mp3", "romanized": []}, "romanized: a text is expected"),
    ],
)
def test_a_bad_entry_is_told_with_its_file_and_key_while_the_rest_is_loaded(
    run: Run, listed: Listed, tree: Path, entry: Any, reason: str
) -> None:
    write_tree(tree, {"music/English": {**TREE["music/English"], "Bad One": entry}})
    code, told = run("load", tree)
    assert code == 1
    assert f"music/English/metadata.json: Bad One: {reason}" in told
    assert len(listed()) == 4


def test_a_file_that_is_no_json_is_told_while_the_rest_is_loaded(run: Run, listed: Listed, tree: Path) -> None:
    (tree / "music" / "Kannada" / "metadata.json").write_text("{")
    code, told = run("load", tree)
    assert (code, "music/Kannada/metadata.json: cannot be read" in told) == (1, True)
    assert len(listed()) == 3


def test_a_folder_that_is_no_catalogue_is_refused(run: Run, tmp_path: Path) -> None:
    code, told = run("load", tmp_path)
    assert (code, "is no catalogue" in told) == (1, True)


@pytest.mark.parametrize(
    ("model", "size", "sentence"),
    [("another/model", 384, "was made with the embedding model another/model"), ("m", 8, "holds vectors of 8 numbers")],
)
def test_vectors_of_another_model_or_size_are_refused_with_a_sentence(
    run: Run, settings: Settings, listed: Listed, tree: Path, model: str, size: int, sentence: str
) -> None:
    title = Title(1, "music", "Theirs", "English", filename="theirs.mp3")
    with open_home(settings).loading("music", model, size) as loading:
        loading.put([Entry(title, np.ones(size, np.float32))])
    for command in ("load", "verify"):
        code, told = run(command, tree)
        assert code == 1
        assert sentence in told
        assert "set EMBEDDING_MODEL" in told
    assert [each["title"] for each in listed()] == ["Theirs"]


def test_verify_tells_what_is_missing_where(run: Run, tree: Path) -> None:
    run("load", tree)
    more = {
        "Baby Shark Dance": {"filename": "shark.mp3", "keywords": ["other"]},
        "Not Loaded": {"filename": "loaded.mp3"},
        "Nowhere": {"filename": "nowhere.mp3"},
    }
    write_tree(tree, {"music/English": more})
    (tree / "music" / "English" / "nowhere.mp3").unlink()
    (tree / "music" / "Kannada" / "moon.mp3").unlink()
    code, told = run("verify", tree)
    assert code == 1
    lines = [line.strip() for line in told.splitlines()]
    for what, title in (
        ("1 no audio on disk:", "Kannada/ಚಂದಮಾಮ (moon.mp3)"),
        ("1 not in the library:", "English/Not Loaded (loaded.mp3)"),
        ("1 neither audio on disk nor in the library:", "English/Nowhere (nowhere.mp3)"),
        ("1 other in the library than in the folder:", "English/Baby Shark Dance (shark.mp3)"),
        ("1 in the library only:", "English/The Wheels on the Bus (bus.mp3)"),
        ("1 sound files that no entry names:", "music/English/bus.mp3"),
    ):
        assert lines[lines.index(what) + 1] == title


@pytest.mark.parametrize("file", ["vectors.npy", "titles.json", "index.bin", "meta.json"])
def test_a_damaged_library_says_what_to_do_and_that_helps(
    run: Run, settings: Settings, listed: Listed, tree: Path, file: str
) -> None:
    run("load", tree)
    (damaged,) = (path for path in snapshot_root(settings).glob(f"music/*/{file}") if not path.parent.is_symlink())
    damaged.write_bytes(b"damaged" + damaged.read_bytes()[7:])
    for command in (("list",), ("search", "baby shark", "--kind", "music")):
        code, told = run(*command)
        assert (code, "damaged" in told) == (1, True)
    assert "run 'python -m agent catalogue load DIR'" in run("list")[1]
    assert "music: 3 added" in run("load", tree)[1]
    assert len(listed()) == 4
    assert run("search", "baby shark", "--kind", "music")[0] == 0
