"""Learn `agent.library.pronunciation` from the CMU pronouncing dictionary that pocketsphinx brings along.

The rules are learnt from all its words: letters and phones are aligned by expectation maximisation, then a letter's
reading is refined by one neighbour after the other wherever enough words agree. Words that the embedding model knows as
a whole, and their commonest inflections, are kept one by one where the rules read them wrongly.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pocketsphinx

import agent.library
from agent.library import model_files
from agent.library.pronunciation import EDGE, FIRST_PHONE, NEIGHBOURS, Pronunciations, Rule
from agent.settings import load_settings

SAMPLE, ROUNDS = 25_000, 3
# How many words must share a neighbour for it to count.
ENOUGH = 12
_VOWELS = frozenset("aeiouy")

Likelihood = Callable[[str, str], float]
Reading = tuple[str, int, str]  # a padded word, a place in it, the phones of the letter there


def dictionary() -> tuple[list[str], dict[str, str]]:
    """The names of the phones, and the usual pronunciation of every word of letters alone."""
    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"  # type: ignore[no-untyped-call]
    entries = [line.split() for line in path.read_text("utf-8").splitlines()]
    phones = sorted({phone for entry in entries for phone in entry[1:]})
    sign = {phone: chr(ord(FIRST_PHONE) + place) for place, phone in enumerate(phones)}
    words: dict[str, str] = {}
    for word, *said in entries:
        bare = word.replace("'", "")
        if bare.isascii() and bare.isalpha():
            words.setdefault(bare, "".join(sign[phone] for phone in said))
    return phones, words


def align(word: str, said: str, likelihood: Likelihood) -> list[str] | None:
    """The phones of each letter, none to two, by the likeliest alignment; None where there are too many phones."""
    best: dict[int, tuple[float, list[str]]] = {0: (0.0, [])}
    for place, letter in enumerate(word):
        left = 2 * (len(word) - place - 1)
        step: dict[int, tuple[float, list[str]]] = {}
        for start, (score, parts) in best.items():
            for end in range(start, min(start + 2, len(said)) + 1):
                if len(said) - end > left:
                    continue
                total = score + likelihood(letter, said[start:end])
                if end not in step or total > step[end][0]:
                    step[end] = (total, [*parts, said[start:end]])
        best = step
    return best[len(said)][1] if len(said) in best else None


def likelihoods(words: dict[str, str], vowels: frozenset[str]) -> Likelihood:
    """How likely a letter is read as some phones, learnt from a sample of words."""

    def first(letter: str, phones: str) -> float:
        if not phones:
            return -3.0
        if len(phones) == 2:
            return -2.0 if letter == "x" else -6.0
        return -1.0 if (letter in _VOWELS) == (phones in vowels) else -4.0

    current: Likelihood = first
    sample = random.Random(1).sample(sorted(words), SAMPLE)
    for _ in range(ROUNDS):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for word in sample:
            for letter, phones in zip(word, align(word, words[word], current) or (), strict=False):
                counts[letter][phones] += 1
        known = {
            (letter, phones): math.log((number + 0.01) / (count.total() + 1))
            for letter, count in counts.items()
            for phones, number in count.items()
        }

        def learnt(letter: str, phones: str, known: dict[tuple[str, str], float] = known) -> float:
            return known.get((letter, phones), -13.0 if len(phones) > 1 else -9.0)

        current = learnt
    return current


def rule_for(readings: Sequence[Reading], depth: int = 0) -> Rule:
    """The commonest reading, refined by the next neighbour where that changes anything."""
    counts = Counter(phones for _, _, phones in readings)
    usual = min(counts, key=lambda phones: (-counts[phones], phones))
    closer: dict[str, Rule] = {}
    if len(counts) > 1 and depth < len(NEIGHBOURS):
        groups: dict[str, list[Reading]] = defaultdict(list)
        for reading in readings:
            groups[reading[0][reading[1] + NEIGHBOURS[depth]]].append(reading)
        for letter, group in sorted(groups.items()):
            if len(group) >= ENOUGH:
                rule = rule_for(group, depth + 1)
                if rule[0] != usual or rule[1]:
                    closer[letter] = rule
    return usual, closer


def usual_words(vocabulary: Sequence[str], words: dict[str, str]) -> list[str]:
    """Dictionary words that are in `vocabulary`, or would be without their ending."""
    known = set(vocabulary)
    return [
        word
        for word in sorted(words)
        if word in known or any(word.endswith(end) and word[: -len(end)] in known for end in ("s", "ed", "ing"))
    ]


def learn(vocabulary: Sequence[str]) -> Pronunciations:
    """Everything, some 20 s on one core."""
    phones, words = dictionary()
    vowels = frozenset(
        chr(ord(FIRST_PHONE) + place) for place, phone in enumerate(phones) if phone[0] in "AEIOU" or phone == "ER"
    )
    wordlike = {word: said for word, said in words.items() if 1 < len(word) < 16}
    likelihood = likelihoods(wordlike, vowels)
    readings: dict[str, list[Reading]] = defaultdict(list)
    for word, said in wordlike.items():
        parts = align(word, said, likelihood)
        for place, part in enumerate(parts or ()):
            readings[word[place]].append((EDGE + word + EDGE, place + len(EDGE), part))
    rules = {letter: rule_for(items) for letter, items in sorted(readings.items())}
    bare = Pronunciations(tuple(phones), {}, rules)
    exceptions = {word: words[word] for word in usual_words(vocabulary, words) if bare.by_rules(word) != words[word]}
    return Pronunciations(tuple(phones), exceptions, rules)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(agent.library.__file__).with_name("pronunciation.json"))
    out = parser.parse_args().out
    tokenizer: dict[str, Any] = json.loads(model_files.find(load_settings()).tokenizer.read_text("utf-8"))
    found = learn(list(tokenizer["model"]["vocab"]))
    head = {
        "made_by": "python -m sandbox.pronunciation_fit",
        "from": "the CMU pronouncing dictionary of pocketsphinx 5.1.1, (c) Carnegie Mellon University, BSD licence",
        "phones": found.phones,
    }
    words = ",\n".join(f"{json.dumps(word)}:{json.dumps(phones)}" for word, phones in found.words.items())
    rules = ",\n".join(
        f"{json.dumps(letter)}: {json.dumps(rule, separators=(',', ':'))}" for letter, rule in found.rules.items()
    )
    out.write_text(f'{json.dumps(head)[:-1]},\n"words": {{\n{words}\n}},\n"rules": {{\n{rules}\n}}}}\n', "utf-8")
    print(f"wrote {out}: {len(found.words)} words, {out.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
