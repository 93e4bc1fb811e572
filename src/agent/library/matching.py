"""How well each of a few titles answers a request: one row of features a name, all of them between 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist

from agent.library.lexical import stem
from agent.library.phonetic import sound_key
from agent.library.pronunciation import said
from agent.library.title_index import Words

FEATURES: Final = (
    "chars",  # edit similarity of the whole request and the whole name, without spaces
    "sounds",  # the same of their consonant classes
    "inside",  # the request is part of the name
    "around",  # the name is part of the request
    "asked",  # share of the request's meaning that the name's words explain
    "told",  # share of the name's meaning that the request's words explain
    "worst",  # the request's least explained word
    "missed",  # the name's least explained word
    "about",  # share of the request's meaning that names and keywords together explain
    "odd",  # the request's word that neither names nor keywords explain
    "words",  # share of the request's meaning whose very words (or stems) are among names and keywords
    "likely",  # the log odds that the name was said somewhere in what was heard, as a share of the most it could get
    "proof",  # the same odds themselves, 1 from 60 on
    "ahead",  # the same, less those of the best name of another title, halved, plus 0.5
    "dense",  # cosine similarity of the embeddings
    "lead",  # the same, less that of the best title, plus 1
    "section",  # 1 in the section asked for, 0 in another, 0.5 when none was asked for
)

Matrix = NDArray[np.float32]

_TELLING_SOUNDS: Final = 5
# Words this alike are one word, written or heard a little differently.
_SAME: Final = 0.8
# Log odds that are as good as certain, and a lead over another title that is as clear as can be.
_CERTAIN: Final = 60.0
_CLEAR: Final = 15.0


@dataclass(frozen=True, slots=True)
class Rows:
    """One row for each pair of a reading and a name: the title's row in the index, both numbers, the features."""

    title: NDArray[np.int32]
    form: NDArray[np.int32]
    reading: NDArray[np.int32]
    features: Matrix


class _Vocabulary:
    """Distinct words numbered as they come; number 0 is no word."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {"": 0}

    def __call__(self, word: str) -> int:
        return self.number.setdefault(word, len(self.number))


def _padded(lists: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    out = np.zeros((len(lists), max((len(item) for item in lists), default=0) or 1), np.int32)
    for row, item in enumerate(lists):
        out[row, : len(item)] = item
    return out


def _pairs(words: Sequence[str]) -> list[str]:
    return [first + second for first, second in pairwise(words)]


def word_similarity(asked: Sequence[str], known: Sequence[str]) -> Matrix:
    """Similarity of every asked word with every known one: spelling, helped by sound; nearly 1 for equal stems."""
    chars = cdist(asked, known, scorer=OSA.normalized_similarity, dtype=np.float32)
    sounds = cdist(
        [sound_key(word) for word in asked],
        [sound_key(word) for word in known],
        scorer=OSA.normalized_similarity,
        dtype=np.float32,
    )
    share = np.minimum(0.55, 0.2 * np.array([len(sound_key(word)) for word in known], np.float32))
    best: Matrix = np.maximum(chars, (1.0 - share) * chars + share * sounds)
    stems = {word: place for place, word in enumerate(dict.fromkeys(stem(word) for word in (*asked, *known)))}
    same = np.equal.outer([stems[stem(word)] for word in asked], [stems[stem(word)] for word in known])
    best[same & (best < 0.97)] = 0.97
    return best


def _sharpen(similarity: Matrix) -> Matrix:
    """What is less than half alike explains nothing."""
    out: Matrix = np.clip((similarity - 0.45) / 0.5, 0.0, 1.0)
    return out


def measure(
    words: Words,
    readings: Sequence[tuple[str, ...]],
    evidence: Mapping[int, float],
    dense: Mapping[int, float],
    section: int | None,
) -> Rows:
    """Features of every reading against every form; `evidence` is by form, `dense` by title row, `section` an index
    into the sections."""
    forms = list(evidence)
    names = [tuple(words.forms[form].split(" ")) for form in forms]
    rows = words.form_row[np.asarray(forms, np.int64)]
    titles = list(dict.fromkeys(rows.tolist()))
    place_of = {row: place for place, row in enumerate(titles)}
    tags = [words.tags[row].split(" ") for row in titles]
    vocabulary, asked_vocabulary = _Vocabulary(), _Vocabulary()
    name_words = _padded([[vocabulary(word) for word in name] for name in names])
    name_pairs = _padded([[vocabulary(pair) for pair in _pairs(name)] for name in names])
    tag_words = _padded([[vocabulary(word) for word in tag] for tag in tags])
    asked = [[asked_vocabulary(word) for word in reading] for reading in readings]
    asked_pairs = [[asked_vocabulary(pair) for pair in _pairs(reading)] for reading in readings]
    similar = _sharpen(word_similarity(list(asked_vocabulary.number), list(vocabulary.number)))
    similar[0, :] = 0.0
    similar[:, 0] = 0.0
    weight = {word: words.word_weight(word) for word in {word for name in names for word in name}}
    name_weight = _weights(names, weight, name_words.shape[1])
    compact = ["".join(name) for name in names]
    sound = ["".join(sound_key(word) for word in name) for name in names]
    whole = ["".join(reading) for reading in readings]
    whole_sound = ["".join(sound_key(word) for word in reading) for reading in readings]
    chars = cdist(whole, compact, scorer=OSA.normalized_similarity, dtype=np.float32)
    # A sound or two are shared by half of all words: short keys prove less.
    sounds = cdist(whole_sound, sound, scorer=OSA.normalized_similarity, dtype=np.float32)
    sounds *= np.minimum(1.0, np.array([len(text) for text in sound], np.float32) / _TELLING_SOUNDS)
    part = cdist(whole, compact, scorer=fuzz.partial_ratio, dtype=np.float32) / 100.0
    floor, best = (min(dense.values()), max(dense.values())) if dense else (0.0, 0.0)
    cosine = np.array([max(0.0, dense.get(row, floor)) for row in titles], np.float32)
    where = np.array(
        [0.5 if section is None else float(words.section_of[row] == section) for row in titles], np.float32
    )
    title_place = np.array([place_of[row] for row in rows.tolist()], np.int64)
    lengths = np.array([len(text) for text in compact], np.float32)
    likely, proof, ahead = _from_evidence(words, evidence, rows)
    blocks: list[Matrix] = []
    for number, reading in enumerate(readings):
        strength = np.array([words.word_weight(word) for word in reading], np.float32)
        explained, told = _align(similar, asked[number], asked_pairs[number], name_words, name_pairs)
        by_tag = similar[asked[number]][:, tag_words].max(axis=2)
        about = np.maximum(by_tag[:, title_place], explained)
        exactly = (by_tag >= 1.0)[:, title_place]
        here = float(len(whole[number]))
        short = np.minimum(lengths, here) / np.maximum(np.maximum(lengths, here), 1.0)
        block = np.zeros((len(forms), len(FEATURES)), np.float32)
        columns = {
            "chars": chars[number],
            "sounds": sounds[number],
            "inside": np.where(lengths >= here, part[number] * min(1.0, here / 6.0), 0.0),
            "around": np.where(lengths < here, part[number] * short, 0.0),
            "asked": strength @ explained / strength.sum(),
            "told": (told * name_weight).sum(axis=1) / np.maximum(name_weight.sum(axis=1), 1e-6),
            "worst": 1.0 - (strength[:, None] * (1.0 - explained)).max(axis=0),
            "missed": 1.0 - (name_weight * (1.0 - told)).max(axis=1),
            "about": strength @ about / strength.sum(),
            "odd": 1.0 - (strength[:, None] * (1.0 - about)).max(axis=0),
            "words": strength @ exactly / strength.sum(),
            "likely": likely,
            "proof": proof,
            "ahead": ahead,
            "dense": cosine[title_place],
            "lead": 1.0 + cosine[title_place] - best,
            "section": where[title_place],
        }
        for place, name in enumerate(FEATURES):
            block[:, place] = columns[name]
        blocks.append(block)
    return Rows(
        np.tile(rows, len(readings)).astype(np.int32),
        np.tile(np.asarray(forms, np.int32), len(readings)),
        np.repeat(np.arange(len(readings), dtype=np.int32), len(forms)),
        np.concatenate(blocks),
    )


def _from_evidence(words: Words, evidence: Mapping[int, float], rows: NDArray[np.int32]) -> tuple[Matrix, ...]:
    odds = np.maximum(0.0, np.array(list(evidence.values()), np.float32))
    most = words.hearing.most([words.phones[form] for form in evidence])
    likely = odds / np.maximum(most, 1.0)
    first = int(odds.argmax())
    others = odds[rows != rows[first]]
    rival = np.where(rows == rows[first], others.max(initial=0.0), odds[first])
    ahead = np.clip((odds - rival) / _CLEAR, -1.0, 1.0)
    return np.minimum(1.0, likely), np.minimum(1.0, odds / _CERTAIN), (ahead + 1.0) / 2.0


def _weights(names: Sequence[Sequence[str]], weight: Mapping[str, float], width: int) -> Matrix:
    out = np.zeros((len(names), width), np.float32)
    for row, name in enumerate(names):
        out[row, : len(name)] = [weight[word] for word in name]
    return out


def _align(
    similar: Matrix,
    asked: Sequence[int],
    asked_pairs: Sequence[int],
    name_words: NDArray[np.int32],
    name_pairs: NDArray[np.int32],
) -> tuple[Matrix, Matrix]:
    """How far each asked word is explained by each name (words, names), and each name's word by the request.

    Two words written as one, and one as two, count as the same.
    """
    by_word = similar[list(asked)][:, name_words]
    by_pair = similar[list(asked)][:, name_pairs]
    explained = np.maximum(by_word.max(axis=2), by_pair.max(axis=2))
    told = by_word.max(axis=0)
    if name_words.shape[1] > 1:
        joined = by_pair.max(axis=0)[:, : name_words.shape[1] - 1]
        told[:, :-1] = np.maximum(told[:, :-1], joined)
        told[:, 1:] = np.maximum(told[:, 1:], joined)
    if asked_pairs:
        pairs = similar[list(asked_pairs)][:, name_words]
        best = pairs.max(axis=2)
        explained[:-1] = np.maximum(explained[:-1], best)
        explained[1:] = np.maximum(explained[1:], best)
        told = np.maximum(told, pairs.max(axis=0))
    return explained, told


REMAINDERS: Final = (
    "unheard",  # share of the request's meaning left when what name and keywords explain is taken away
    "unsaid",  # share of the name's meaning left when what the request explains is taken away
    "alike",  # how much the two remainders sound alike
    "similar",  # the same, times the smaller share: a word misheard
    "contrary",  # how little they do, times the smaller share: another word in a word's place
    "replaced",  # how little they do, times the request's share and what is common: a name with another word in it
)


def _heard_as(words: Words, heard: Sequence[str], named: Sequence[str]) -> float:
    """How much the words heard speak for those of a name, as a share of the most they could."""
    name = said(named)[:40]
    odds, _ = words.hearing.evidence([name], said(heard)[:40])
    return max(0.0, float(odds[0])) / max(1.0, float(words.hearing.most([name])[0]))


def remainders(words: Words, reading: Sequence[str], form: int, row: int) -> tuple[float, ...]:
    """What of a request and of a name is left over when their common words are taken away (see REMAINDERS)."""
    name = words.forms[form].split(" ")
    tags = words.tags[row].split(" ")
    likeness = word_similarity(reading, name)
    mine, yours = set(range(len(reading))), set(range(len(name)))
    for place in np.argsort(-likeness, axis=None).tolist():
        i, j = divmod(place, len(name))
        if likeness[i, j] < _SAME:
            break
        if i in mine and j in yours:
            mine.discard(i)
            yours.discard(j)
    if mine:
        left = sorted(mine)
        known = word_similarity([reading[i] for i in left], tags).max(axis=1)
        mine = {i for i, value in zip(left, known.tolist(), strict=True) if value < _SAME}
    asked = [words.word_weight(word) for word in reading]
    told = [words.word_weight(word) for word in name]
    unheard = sum(asked[i] for i in mine) / sum(asked)
    unsaid = sum(told[j] for j in yours) / sum(told)
    alike = 0.0
    if mine and yours:
        here, there = [reading[i] for i in sorted(mine)], [name[j] for j in sorted(yours)]
        alike = max(_heard_as(words, here, there), OSA.normalized_similarity("".join(here), "".join(there)))
    smaller = min(unheard, unsaid)
    different = 1.0 - alike
    replaced = (1.0 - unsaid) * unheard * different if yours else 0.0
    return unheard, unsaid, alike, smaller * alike, smaller * different, replaced
