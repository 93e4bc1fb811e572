"""The words of a catalogue in flat arrays: one buffer, written once, mapped by every process and never parsed."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.errors import LibraryError
from agent.library.lexical import FUNCTION_WORDS, fold, grams, phone_grams, stem
from agent.library.mishearing import channel
from agent.library.pronunciation import said
from agent.library.requests import Sections, asking
from agent.library.titles import Title

_MAGIC: Final = b"TITLEIX1"
_MAX_NAMES: Final = 12
_MAX_TAGS: Final = 48
# A longer name is known by its beginning.
_MAX_PHONES: Final = 48
_MAX_WEIGHTS: Final = 4096

Ints = NDArray[np.int32]


def _key(text: str) -> int:
    return zlib.crc32(text.encode())


@dataclass(frozen=True, slots=True)
class Postings:
    """Which items carry a key: `items[starts[i]:starts[i + 1]]` belong to `keys[i]` (sorted CRC-32 of the text)."""

    keys: NDArray[np.uint32]
    starts: Ints
    items: Ints

    @classmethod
    def of(cls, documents: Iterable[Iterable[str]]) -> Postings:
        """Postings of documents numbered from 0; repeats within a document count once."""
        found: dict[int, list[int]] = {}
        for number, document in enumerate(documents):
            for key in {_key(text) for text in document}:
                found.setdefault(key, []).append(number)
        keys = sorted(found)
        counts = np.array([0, *(len(found[key]) for key in keys)], np.int64)
        items = [item for key in keys for item in found[key]]
        return cls(np.array(keys, np.uint32), np.cumsum(counts).astype(np.int32), np.array(items, np.int32))

    def get(self, text: str) -> Ints:
        """Items that carry `text`, ascending."""
        key = _key(text)
        place = int(np.searchsorted(self.keys, np.uint32(key)))
        if place == len(self.keys) or int(self.keys[place]) != key:
            return self.items[:0]
        return self.items[self.starts[place] : self.starts[place + 1]]


@dataclass(frozen=True, slots=True)
class Texts:
    """Strings end to end in UTF-8, decoded one by one when wanted."""

    blob: NDArray[np.uint8]
    starts: Ints

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Pack `texts`."""
        encoded = [text.encode() for text in texts]
        starts = np.cumsum(np.array([0, *(len(text) for text in encoded)], np.int64)).astype(np.int32)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts)

    def __getitem__(self, place: int) -> str:
        return self.blob[self.starts[place] : self.starts[place + 1]].tobytes().decode()

    def __len__(self) -> int:
        return len(self.starts) - 1


class Words:
    """Everything search knows about the titles' words. Rows are titles in the order given; forms are their names."""

    def __init__(self, arrays: dict[str, NDArray[np.generic]], meta: dict[str, object]) -> None:
        self._arrays = arrays
        self._meta = meta
        self._weights: dict[str, float] = {}
        self.hearing = channel()
        self.ids: NDArray[np.int64] = arrays["ids"].view(np.int64)
        self.section_of: Ints = arrays["section_of"].view(np.int32)
        self.form_row: Ints = arrays["form_row"].view(np.int32)
        self.titles = self._texts("titles")
        self.forms = self._texts("forms")
        self.phones = self._texts("phones")
        self.tags = self._texts("tags")
        self.exact = self._postings("exact")
        self.char_grams = self._postings("char_grams")
        self.phone_grams = self._postings("phone_grams")
        self.stems = self._postings("stems")
        self.char_norm: NDArray[np.float32] = arrays["char_norm"].view(np.float32)
        self.phone_norm: NDArray[np.float32] = arrays["phone_norm"].view(np.float32)
        sections = meta["sections"]
        aliases = meta["aliases"]
        assert isinstance(sections, list)
        assert isinstance(aliases, dict)
        self.sections: tuple[str, ...] = tuple(sections)
        self.names_of_sections = Sections(aliases)

    def _texts(self, name: str) -> Texts:
        return Texts(self._arrays[name + ".blob"].view(np.uint8), self._arrays[name + ".starts"].view(np.int32))

    def _postings(self, name: str) -> Postings:
        part = self._arrays
        return Postings(
            part[name + ".keys"].view(np.uint32),
            part[name + ".starts"].view(np.int32),
            part[name + ".items"].view(np.int32),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def title(self, row: int) -> Title:
        """The title in `row`."""
        known = json.loads(self.titles[row])
        known["alternatives"], known["keywords"] = tuple(known["alternatives"]), tuple(known["keywords"])
        return Title(**known)

    def word_weight(self, word: str) -> float:
        """How much of a name's meaning a word carries, from 0.12 to 1: less when common or merely grammatical."""
        weight = self._weights.get(word)
        if weight is None:
            if len(self._weights) >= _MAX_WEIGHTS:  # requests hold any words there are
                self._weights.clear()
            weight = self._weights[word] = self._weigh(word)
        return weight

    def _weigh(self, word: str) -> float:
        if word in FUNCTION_WORDS:
            return 0.12
        weight = idf(len(self.stems.get(stem(word))), len(self))
        return min(weight, 0.4) if asking(word) else weight


def idf(found: int, total: int) -> float:
    """Rarity of something found in `found` of `total` documents, from 0.25 to 1."""
    if total < 2:
        return 1.0
    return max(0.25, min(1.0, 1.0 - 0.8 * math.log1p(found) / math.log1p(total) * min(1.0, total / 100)))


def gram_weight(found: int | NDArray[np.generic], total: int) -> float:
    """Inverse document frequency of a gram."""
    return math.log(1 + (total + 1) / (float(found) + 0.5))


def _forms(title: Title) -> list[tuple[str, ...]]:
    forms = dict.fromkeys(fold(name) for name in title.names)
    forms.pop((), None)
    return list(forms)[:_MAX_NAMES]


def _tags(title: Title, forms: Sequence[tuple[str, ...]]) -> list[str]:
    words = [word for keyword in title.keywords for word in fold(keyword)]
    words += [word for form in forms for word in form]
    words += fold(title.section)
    return list(dict.fromkeys(word for word in words if word not in FUNCTION_WORDS))[:_MAX_TAGS]


def pack(titles: Sequence[Title]) -> bytes:
    """The whole index of `titles` as one buffer for `unpack`; 10,000 titles take a few seconds and some 20 MB."""
    forms: list[tuple[str, ...]] = []
    rows: list[int] = []
    tags: list[list[str]] = []
    for row, title in enumerate(titles):
        own = _forms(title)
        forms.extend(own)
        rows.extend([row] * len(own))
        tags.append(_tags(title, own))
    sections = list(dict.fromkeys(title.section for title in titles))
    phones = [said(form)[:_MAX_PHONES] for form in forms]
    arrays: dict[str, NDArray[np.generic]] = {
        "ids": np.array([title.id for title in titles], np.int64),
        "section_of": np.array([sections.index(title.section) for title in titles], np.int32),
        "form_row": np.array(rows, np.int32),
    }
    texts = {
        "titles": [_dump(title) for title in titles],
        "forms": [" ".join(form) for form in forms],
        "phones": phones,
        "tags": [" ".join(words) for words in tags],
    }
    for name, values in texts.items():
        packed = Texts.of(values)
        arrays[name + ".blob"], arrays[name + ".starts"] = packed.blob, packed.starts
    for name, documents in (
        ("exact", [["".join(form)] for form in forms]),
        ("char_grams", [grams(form) for form in forms]),
        ("phone_grams", [phone_grams(text) for text in phones]),
        ("stems", [[stem(word) for word in words] for words in tags]),
    ):
        postings = Postings.of(documents)
        arrays[name + ".keys"], arrays[name + ".starts"] = postings.keys, postings.starts
        arrays[name + ".items"] = postings.items
        if name.endswith("_grams"):
            arrays[name.removesuffix("grams") + "norm"] = _norms(postings, len(forms))
    meta: dict[str, object] = {"sections": sections, "aliases": Sections.of(sections).aliases}
    return _join(arrays, meta)


def _dump(title: Title) -> str:
    return json.dumps(
        {name: getattr(title, name) for name in title.__slots__}, ensure_ascii=False, separators=(",", ":")
    )


def _norms(postings: Postings, total: int) -> NDArray[np.float32]:
    counts = np.diff(postings.starts)
    weights = np.log(1 + (total + 1) / (counts + 0.5))
    return np.bincount(postings.items, np.repeat(weights, counts), total).astype(np.float32)


def _join(arrays: dict[str, NDArray[np.generic]], meta: dict[str, object]) -> bytes:
    layout: dict[str, tuple[int, int, str]] = {}
    parts: list[bytes] = []
    place = 0
    for name, array in arrays.items():
        raw = array.tobytes()
        layout[name] = (place, len(array), array.dtype.str)
        raw += bytes(-len(raw) % 8)
        parts.append(raw)
        place += len(raw)
    head = json.dumps({"layout": layout, **meta}, ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return b"".join((_MAGIC, len(head).to_bytes(8, "little"), head, *parts))


def unpack(buffer: bytes | memoryview) -> Words:
    """Read what `pack` wrote without copying it: `buffer` (also a memory map) must outlive the result.

    Raises LibraryError for anything else.
    """
    view = memoryview(buffer)
    try:
        if bytes(view[:8]) != _MAGIC:
            raise ValueError("wrong mark")
        size = int.from_bytes(view[8:16], "little")
        meta = json.loads(bytes(view[16 : 16 + size]))
        body = view[16 + size :]
        arrays: dict[str, NDArray[np.generic]] = {
            name: np.frombuffer(body, np.dtype(kind), count, place)
            for name, (place, count, kind) in meta.pop("layout").items()
        }
        return Words(arrays, meta)
    except (ValueError, KeyError, TypeError) as error:
        raise LibraryError("the title index is damaged or of another version: load the catalogue again") from error
