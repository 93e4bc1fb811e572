"""The evaluation set of the library: a catalogue of public-domain titles and requests for it, in groups.

Names, descriptions and foreign spellings were written by hand (library_catalogue.csv, library_phrases.csv) before any
ranking was tuned; exact, partial and misspelt requests are derived from the titles by rules here, the same every time.
What was misheard comes from a real recogniser (library_heard.json, made by `python -m sandbox.library_heard`).

A title belongs wholly to one split, by its hash, with every request for it: "development" for tuning, "report" for
figures. Near misses go with the title they imitate.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal, cast

from agent.library.lexical import FUNCTION_WORDS, fold
from agent.library.titles import Kind, Title

Group = Literal["exact", "partial", "misspelt", "misheard", "script", "described", "absent", "near"]
Split = Literal["development", "report"]

PRESENT: Final[tuple[Group, ...]] = ("exact", "partial", "misspelt", "script", "misheard", "described")
ABSENT: Final[tuple[Group, ...]] = ("absent", "near")
GROUPS: Final = PRESENT + ABSENT

# How children and parents ask, by the language of what they ask for; {} is the name.
_CARRIERS: Final[dict[str, tuple[str, ...]]] = {
    "music": (
        "{}",
        "play {}",
        "play {} please",
        "can you play {}",
        "could you please play me {}",
        "I want to hear {}",
        "I'd like to listen to {}",
        "put on {}",
        "sing {} for me",
        "let's listen to {}",
        "play the song {}",
        "hey, can you play the song called {}?",
        "I wanna hear {} again",
    ),
    "story": (
        "{}",
        "tell me {}",
        "tell me the story of {}",
        "can you tell me {}",
        "I want to hear {}",
        "read {}",
        "please read me {}",
        "play the story {}",
        "the story called {}",
        "could you tell us the story {} please",
    ),
    "Hindi": ("{}", "{} सुनाओ", "मुझे {} सुनना है", "{} बजाओ", "कृपया {} चलाओ", "{} गाना सुनाओ", "{} लगा दो"),
    "Kannada": ("{}", "{} ಹಾಡು ಹಾಕು", "ನನಗೆ {} ಹಾಡು ಬೇಕು", "{} ಪ್ಲೇ ಮಾಡು", "ದಯವಿಟ್ಟು {} ಹಾಡಿ"),
    "Telugu": ("{}", "{} పాట పెట్టు", "నాకు {} పాట వినాలి", "{} పాట పాడు", "దయచేసి {} వినిపించు"),
    "Tamil": ("{}", "{} பாட்டு போடு", "எனக்கு {} பாட்டு கேட்கணும்", "{} பாடல் பாடு"),
    "Chinese": ("{}", "请播放{}", "我想听{}", "放一首{}", "唱{}这首歌", "给我放{}", "播放儿歌{}"),
    "Japanese": ("{}", "{}をかけて", "{}を歌って", "{}が聞きたい", "{}を流してください"),
    "German": ("{}", "spiel {}", "spiel bitte das Lied {}", "ich möchte {} hören", "kannst du {} spielen"),
    "French": ("{}", "joue {}", "mets la chanson {}", "je veux écouter {}", "chante-moi {} s'il te plaît"),
    "Spanish": ("{}", "pon {}", "quiero escuchar {}", "toca la canción {} por favor", "cántame {}"),
    "Portuguese": ("{}", "toca {}", "quero ouvir {}", "põe a música {}", "canta {} por favor"),
}
_DESCRIBING: Final[dict[str, tuple[str, ...]]] = {
    "music": ("{}", "play {}", "can you play {}", "I want the song with {}", "play that song, {}", "the song with {}"),
    "story": ("{}", "tell me the story about {}", "I want the story, {}", "a story about {}", "read the one with {}"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One request: what is said, and the title that is meant, None where the catalogue lacks it."""

    group: Group
    kind: Kind
    text: str
    title: str | None
    split: Split


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(resources.files("sandbox").joinpath(name).read_text("utf-8").splitlines()))


def seeded(text: str) -> random.Random:
    """The same random numbers for the same text, on every machine."""
    return random.Random(zlib.crc32(text.encode()))


def catalogue() -> list[Title]:
    """The titles, ids stable."""
    return [
        Title(
            id=int.from_bytes(hashlib.sha256(f"{row['kind']}/{row['title']}".encode()).digest()[:6]),
            kind=cast(Kind, row["kind"]),
            title=row["title"],
            section=row["section"],
            romanized=row["romanized"],
            alternatives=tuple(part for part in row["alternatives"].split("|") if part),
            keywords=tuple(part for part in row["keywords"].split("|") if part),
            filename=f"{number:04}.ogg",
        )
        for number, row in enumerate(_rows("library_catalogue.csv"))
    ]


def split_of(text: str) -> Split:
    """The split of a title (or of an absent request), by its hash."""
    return "report" if hashlib.sha256(text.encode()).digest()[0] & 1 else "development"


def carried(title: Title, name: str, rng: random.Random) -> str:
    """`name` in a natural sentence, in the title's language if `name` is in its script, else in English."""
    own = _CARRIERS.get(title.section, ()) if not name.isascii() or title.section in _LATIN else ()
    return rng.choice(own or _CARRIERS[title.kind]).format(name)


_LATIN: Final = {"German", "French", "Spanish", "Portuguese"}


def cases() -> list[Case]:
    """Every request of both splits, in a fixed order."""
    titles = catalogue()
    by_name = {(title.kind, title.title): title for title in titles}
    out: list[Case] = []
    for title in titles:
        split = split_of(title.title)
        for group, text in _derived(title, titles):
            out.append(Case(group, title.kind, text, title.title, split))
    for row in _rows("library_phrases.csv"):
        kind, group, phrase = cast(Kind, row["kind"]), cast(Group, row["group"]), row["phrase"]
        rng = seeded(phrase)
        if group == "described":
            split = split_of(row["title"])
            if rng.random() < 0.45 or split == "development":
                out.append(Case(group, kind, rng.choice(_DESCRIBING[kind]).format(phrase), row["title"], split))
        elif group == "script":
            text = carried(by_name[kind, row["title"]], phrase, rng) if phrase.isascii() else phrase
            out.append(Case(group, kind, text, row["title"], split_of(row["title"])))
        else:
            text = rng.choice(_CARRIERS[kind]).format(phrase)
            out.append(Case(group, kind, text, None, split_of(row["title"] or phrase)))
    heard = json.loads(resources.files("sandbox").joinpath("library_heard.json").read_text("utf-8"))
    out.extend(
        Case("misheard", item["kind"], item["heard"], item["title"], split_of(item["title"]))
        for item in heard["utterances"]
        if item["heard"]
    )
    return out


def spoken(title: Title) -> list[str]:
    """What the recogniser's voice says for a title: nothing for titles an English voice cannot say."""
    english = title.kind == "story" or title.section in {"English", "Phonics"}
    rng = seeded("spoken " + title.title)
    if not english:
        return []
    if split_of(title.title) == "development":
        return [carried(title, title.title, rng) for _ in range(2)]
    return [carried(title, title.title, rng)] if rng.random() < 0.55 else []


def _derived(title: Title, titles: Sequence[Title]) -> Iterator[tuple[Group, str]]:
    rng = seeded(title.title)
    names = title.names
    if rng.random() < 0.32:
        name = rng.choice(names)
        yield "exact", carried(title, name if rng.random() < 0.5 else name.lower(), rng)
    if rng.random() < 0.45:
        part = partial_name(title, titles, rng)
        if part:
            yield "partial", carried(title, part, rng)
    if rng.random() < 0.4:
        latin = [name for name in names if name.isascii() and len(name) > 6]
        if latin:
            wrong = misspell(rng.choice(latin[:2]).lower(), rng)
            yield "misspelt", carried(title, wrong, rng)


def partial_name(title: Title, titles: Sequence[Title], rng: random.Random) -> str | None:
    """Some consecutive words of the name that belong to no other title."""
    words = title.title.split()
    if len(words) < 3:
        return None
    spans = [
        words[start : start + size]
        for size in range(1, len(words))
        for start in range(len(words) - size + 1)
        if size / len(words) >= 0.4
    ]
    rng.shuffle(spans)
    for span in spans:
        folded = set(fold(" ".join(span)))
        meaning = [word for word in folded if word not in FUNCTION_WORDS]
        if len("".join(meaning)) < 6 or (len(meaning) < 2 and len(span) > 2):
            continue
        others = (set(fold(name)) for other in titles if other is not title for name in other.names)
        if fold(span[-1])[-1:] and fold(span[-1])[-1] not in FUNCTION_WORDS and not any(folded <= o for o in others):
            return " ".join(span)
    return None


_SOUND_ALIKE: Final = (
    ("ph", "f"), ("ck", "k"), ("ee", "ea"), ("ea", "ee"), ("oo", "u"), ("ou", "ow"), ("ie", "ei"), ("y", "ie"),
    ("igh", "ite"), ("c", "k"), ("s", "z"), ("x", "ks"), ("wh", "w"), ("le", "el"), ("er", "ar"), ("ai", "ay"),
    ("tt", "t"), ("ll", "l"), ("pp", "p"), ("mm", "m"), ("dd", "d"), ("v", "w"), ("th", "t"), ("qu", "kw"),
    ("kn", "n"), ("mb", "m"), ("tion", "shun"), ("i", "e"), ("e", "i"), ("a", "e"), ("o", "u"), ("j", "g"),
)  # fmt: skip


def misspell(name: str, rng: random.Random) -> str:
    """`name` as somebody writes it who spells by ear or types in a hurry: one slip for about six letters."""
    for _ in range(max(1, round(len(name) / 7))):
        roll = rng.random()
        place = rng.randrange(1, len(name) - 1)
        if roll < 0.45:
            fitting = [(old, new) for old, new in _SOUND_ALIKE if old in name]
            if fitting:
                old, new = rng.choice(fitting)
                name = name.replace(old, new, 1)
        elif roll < 0.6:
            name = name[: place - 1] + name[place] + name[place - 1] + name[place + 1 :]
        elif roll < 0.75:
            name = name[:place] + name[place + 1 :]
        elif roll < 0.85:
            name = name[:place] + name[place] + name[place:]
        else:
            name = name[:place] + rng.choice("aeioutrsnl") + name[place + 1 :]
    return name


def _list(text: str, separator: str = " ") -> list[str]:
    return text.split(separator)


_FIRST: Final = _list(
    "Little Big Old Young Happy Sleepy Funny Silver Golden Green Brown Purple Lonely Brave Lazy Busy Quiet Noisy "
    "Clever Silly Hungry Tiny Great Merry Gentle Wild Bright Dark Early Lost Secret Magic Hidden Dancing Singing "
    "Running"
)
_SECOND: Final = _list(
    "Panda Walrus Kettle Tractor Lantern Pebble Meadow Rocket Cactus Violin Teapot Penguin Otter Badger Puddle "
    "Marble Candle Turnip Window Ladder Hammock Igloo Jacket Kite Lemon Mitten Noodle Onion Parasol Quilt Ribbon "
    "Saddle Trumpet Umbrella Velvet Wagon Yak Zipper Anchor Barrel Comet Dragonfly Engine Feather Glacier Harbor "
    "Island"
)
_THIRD: Final = _list(
    "in the Rain|on the Hill|by the Sea|at Midnight|of Winter|and the Clock|and the Baker|Goes to Town|"
    "under the Bridge|in the Garden|on Holiday|Comes Home|over the Valley|and His Friends|of the Forest|"
    "without a Name|Lullaby|Waltz|March",
    "|",
)


def distractors(count: int, kind: Kind, sections: Sequence[str]) -> list[Title]:
    """Generated titles that pad a catalogue: ordinary words in new combinations, each with a keyword or two."""
    rng = random.Random(count)
    out: dict[str, Title] = {}
    while len(out) < count:
        first, second, third = rng.choice(_FIRST), rng.choice(_SECOND), rng.choice(_THIRD)
        extra = f" {rng.choice(_SECOND)}" if rng.random() < 0.5 else ""
        name = f"{'The ' if rng.random() < 0.5 else ''}{first}{extra} {second} {third}"
        if name not in out:
            out[name] = Title(
                id=2**62 + zlib.crc32(f"{kind}/{name}".encode()),
                kind=kind,
                title=name,
                section=rng.choice(sections),
                alternatives=(f"{second} {third}",) if rng.random() < 0.2 else (),
                keywords=(second.lower(), third.split()[-1].lower()),
                filename=f"{len(out):05}.ogg",
            )
    return list(out.values())
