"""What a child's sentence asks for: words that name a title, a language or category, or just any one, another one."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, Literal

from agent.library.lexical import FUNCTION_WORDS, fold, stem
from agent.library.misheard_asking import without_misheard_asking

Wish = Literal["named", "any", "another", "again"]


def _words(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in fold(text))


# Words that ask rather than name, in the languages children ask in; folded, so both scripts of a language are meant.
_ENGLISH_ASKING: Final = _words(
    "please can could would will you play playing put start begin find give bring turn switch let lets us me we i im id"
    " want wanna need like love to hear listen hearing listening have do know now hey ok okay hi hello um uh er so and"
    " then well just sing singing tell read show get go the a an that this those some any more one ones my for on of by"
    " about called named titled name title it is with where how goes go there something anything whatever surprise"
    " random else maybe really quick quickly today mummy mommy mama daddy papa toy buddy dear kindly thanks thank"
    " song songs music tune tunes track rhyme rhymes story stories tale tales lullaby lullabies poem nursery audio"
    " another other different next new again same repeat once your yours those these our",
)
_ASKING: Final = _ENGLISH_ASKING | _words(
    "कृपया ज़रा मुझे हमें हमको मुझको सुनाओ सुनाइए सुना सुनना सुनाना बजाओ बजाइए बजा चलाओ चलाइए चला लगाओ लगाइए लगा दो दीजिए दे चाहता"
    " चाहती चाहिए है हूँ हूं गाओ गाना गाने गीत कहानी कहानियाँ कविता वाला वाली वाले का की के को एक कोई कुछ और दूसरा दूसरी अगला अगली"
    " फिर से वही दोबारा क्या तुम आप सकते सकती हो भजन लोरी संगीत एक नया नई अलग",
    "ದಯವಿಟ್ಟು ನನಗೆ ನಮಗೆ ಹಾಡು ಹಾಡನ್ನು ಹಾಡಿ ಹಾಡು ಹಾಕು ಹಾಕಿ ಹೇಳು ಹೇಳಿ ಕೇಳಬೇಕು ಕೇಳಿಸು ಕಥೆ ಕಥೆಯನ್ನು ಕತೆ ಒಂದು ಬೇರೆ ಇನ್ನೊಂದು ಯಾವುದಾದರೂ ಪ್ಲೇ"
    " ಮಾಡು ಮಾಡಿ ಬೇಕು ಇನ್ನೂ",
    "దయచేసి నాకు మాకు పాట పాటను పాటలు పాడు పాడండి పెట్టు పెట్టండి వినిపించు వినిపించండి వినాలి ఉంది కథ కథను చెప్పు చెప్పండి ఒక వేరే ఇంకో"
    " ఇంకొక ఏదైనా ప్లే చెయ్యి చేయండి",
    "தயவுசெய்து எனக்கு எங்களுக்கு பாட்டு பாட்டை பாடல் பாடலை பாடு பாடுங்கள் போடு போடுங்கள் கேட்கணும் கேட்க வேண்டும் கதை கதையை சொல்லு"
    " சொல்லுங்கள் ஒரு வேறு இன்னொரு ஏதாவது",
    "bitte spiel spiele spielen spielst kannst könntest du mir uns mal ich möchte will würde gerne gern hören sing"
    " singe erzähl erzähle erzählen lies vor mach an das die der den ein eine lied lieder liedchen musik geschichte"
    " geschichten märchen von vom über noch eins einen anderes andere nächste nächstes irgendein irgendwas etwas"
    " nochmal einmal",
    "s'il te plaît plait peux tu pourrais joue jouer joues mets mettre chante chanter raconte raconter moi nous je veux"
    " voudrais aimerais écouter entendre la le l' les une un chanson chansons comptine musique histoire histoires conte"
    " de du des d' sur qui s'appelle encore autre suivante suivant quelque chose n'importe quoi quelle"
    " fois",
    "por favor puedes podrías pon ponme toca tócame reproduce canta cántame cuenta cuéntame quiero quisiera escuchar"
    " oír la el los las un una canción canciones música cuento cuentos historia de del sobre que se llama otra otro"
    " siguiente algo cualquier alguna vez",
    "por favor pode podes poderia toca tocar toque põe coloca cante cantar conta contar conte quero queria gostaria"
    " ouvir escutar a o uma um música músicas canção canções história histórias conto de do da sobre que se chama outra"
    " outro próxima próximo mais alguma qualquer",
)
_ANOTHER: Final = _words(
    "another other different else next new",
    "दूसरा दूसरी अगला अगली अलग ಇನ್ನೊಂದು ಬೇರೆ వేరే ఇంకో ఇంకొక வேறு இன்னொரு anderes andere nächste nächstes autre suivante"
    " suivant otra otro siguiente outra outro próxima próximo",
)
_AGAIN: Final = _words("again repeat same once")
# What means the same again as a whole, whatever its words mean alone: "otra" is another one, "फिर" is then.
_ONCE_MORE: Final = tuple(
    _words(phrase)
    for phrase in (
        "फिर से",
        "दोबारा",
        "nochmal",
        "noch einmal",
        "encore une fois",
        "otra vez",
        "outra vez",
        "mais uma vez",
    )
)
# What may stand between the asking and the name, and behind the name.
_BEFORE_NAME: Final = _words("me us of about called named de del von vom sobre") - _words("e")
_BEHIND_NAME: Final = frozenset({("for", "me"), ("for", "us"), ("to", "me"), ("to", "us")})
_SMALL: Final = FUNCTION_WORDS | _words("hi hey hello")
# What asks for any one, in English: a title that is called just that is found when nothing else is said.
_STOCK: Final = _words(
    "a an the any some this that these those one ones me us it for to on in play sing tell read hear put another"
    " other different next new again same once more something anything whatever song songs music tune story stories"
    " tale tales lullaby rhyme rhymes poem",
)
# Asking words that names are made of as well ("let it go", "I love you"), and what may stand between them.
_NAMING: Final = _words(
    "let lets love hi hello hey go goes is i we and where how you my your our mummy mommy mama daddy papa dear",
)
_CALLED_ALONE: Final = _words("hello hi mama papa mummy daddy love")
_CALLING: Final = _words("play sing song story called hear")
_BETWEEN: Final = _words("me us it a an the this that these those one ones on in of there yours")
_DETERMINERS: Final = _words("a an the this that these those my your our in on of and")
_RECIPIENTS: Final = _words("me us")
_FOR_WHOM: Final = _words("for to with")
# What may follow a name.
_AFTER_NAME: Final = _words("please song story rhyme tale poem lullaby again now for to with thanks thank")
# What comes before a description, and what says that one title alone is meant.
_ABOUT: Final = _words("about with")
_PARTICULAR: Final = _words("the that this")
_MOST_WORDS: Final = 24
_LONGEST_NAME: Final = 8
# What may stand before the name of a language.
_PREPOSITIONS: Final = _words("in auf en em im mein में from")
_CJK_BEFORE: Final = re.compile(
    r"^(?:请|請|麻烦|你|您|能不能|可以|可不可以|能|我|想要|想|要|给我|給我|帮我|幫我|为我|给|帮|播放|播|放|唱|讲|講|说|說|念|来|來|点|听|聽|再|换|換|随便|随机|任意"
    r"|一首|一个|一個|一下|一段|首|个|個|那首|那个|这首|这个|另|另外|别的|下一|关于|關於|有关|叫做|叫|名叫|歌曲|儿歌|兒歌|故事|音乐|歌|的)+"
)
_CJK_AFTER: Final = re.compile(
    r"(?:这首歌|那首歌|这个故事|那个故事|这首|那首|这个|的?儿歌|的?兒歌|的?歌曲|的?音乐|的?故事|的?歌|吧|好吗|可以吗|行吗|吗|谢谢|呢|啊"
    r"|の(?:歌|お話|曲)|を?(?:かけて|流して|歌って|聞かせて|聴かせて|再生して|読んで)(?:ください|くれる|ほしい)?|が?聞きたい|が?聴きたい|ください)+$"
)
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_CJK_ANOTHER: Final = re.compile(r"换|換|另|别的|下一|再来|再來|再放|再唱|再讲")
_PUNCTUATION: Final = re.compile(r"[\s,.!?;:，。！？、；：'\"“”‘’「」《》()（）]+")


@dataclass(frozen=True, slots=True)
class Request:
    """A sentence understood.

    `readings` are the ways to read the words that name a title, likeliest first, each as folded words; empty unless
    `wish` is "named". `section` is where to look, None for everywhere; `section_missing` is True when a language or
    category was asked for that the catalogue does not have. `text` is what to embed, `heard` the words in which a name
    was said, misheard or not. `names` are what a title may be called word for word, likeliest first: one that is found
    is meant, whatever the wish. `about` are the words of a description ("a story about a rabbit"); `particular` is True
    when it is one that the child knows ("the story about the rabbit").
    """

    wish: Wish
    readings: tuple[tuple[str, ...], ...] = ()
    section: str | None = None
    section_missing: bool = False
    text: str = ""
    heard: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()
    about: tuple[str, ...] = ()
    particular: bool = False


class Sections:
    """The names by which a catalogue's sections may be asked for: `aliases` maps folded names to sections, or to ""
    for languages the world knows and the catalogue does not have."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.aliases = dict(aliases)
        self._longest = max((alias.count(" ") + 1 for alias in self.aliases), default=0)

    @classmethod
    def of(cls, sections: Iterable[str]) -> Sections:
        """Names of `sections`: their own, and for languages the code and the names in many languages."""
        aliases: dict[str, str] = {}
        known = _languages()
        own = {" ".join(fold(section)): section for section in sections if section}
        for code, names in known.items():
            folded = {" ".join(fold(name)) for name in names} - {""}
            section = next((own[name] for name in (*folded, code) if name in own), "")
            for name in folded:
                aliases[name] = aliases.get(name) or section
            aliases["=" + code] = section
        for name, section in own.items():
            aliases[name] = section
            aliases[" ".join(stem(word) for word in name.split())] = section
        for name, section in own.items():
            aliases.setdefault(" ".join(word for word in name.split() if not asking(word)), section)
        aliases.pop("", None)
        return cls(aliases)

    def resolve(self, name: str) -> str | None:
        """The section that `name` means (any case, language code, other language or script), None if there is none."""
        words = fold(name.strip())
        folded = " ".join(words)
        stems = " ".join(stem(word) for word in words)
        base = words[0] if words else ""
        for key in (folded, stems, "=" + folded, "=" + base if len(base) in {2, 3} else ""):
            if self.aliases.get(key):
                return self.aliases[key]
        mention = self.find(words)  # "bedtime stories" means "Bedtime", too
        return mention[0] or None if mention else None

    def lacks(self, name: str) -> bool:
        """Whether `name` is that of a language the catalogue does not have."""
        folded = " ".join(fold(name.strip()))
        return self.resolve(name) is None and (folded in self.aliases or "=" + folded in self.aliases)

    def find(self, words: Sequence[str]) -> tuple[str, int, int] | None:
        """The last mention of a section in `words`: (section or "", start, end), longer mentions first."""
        for size in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - size, -1, -1):
                part = words[start : start + size]
                key = " ".join(part)
                if len(key) < 4:
                    continue
                section = self.aliases.get(key)
                if section is None:
                    section = self.aliases.get(" ".join(stem(word) for word in part))
                if section is not None:
                    return section, start, start + size
        return None


@cache
def _languages() -> dict[str, list[str]]:
    text = resources.files("agent.library").joinpath("languages.json").read_text("utf-8")
    return {code: names for code, names in json.loads(text).items() if not code.startswith("_")}


def asking(word: str) -> bool:
    """Whether a folded word asks rather than names; romanised long vowels may be written double."""
    return word in _ASKING or word.replace("aa", "a").replace("oo", "u").replace("ee", "i") in _ASKING


def _trim(words: Sequence[str]) -> tuple[str, ...]:
    """`words` without the asking words at both ends."""
    start, end = 0, len(words)
    while start < end and asking(words[start]):
        start += 1
    while end > start and asking(words[end - 1]):
        end -= 1
    return tuple(words[start:end])


def _without_cjk_asking(text: str) -> str:
    text = _PUNCTUATION.sub("", text)
    return _CJK_AFTER.sub("", _CJK_BEFORE.sub("", text)) if text else text


def _names_behind(words: Sequence[str]) -> bool:
    """Whether small words of another language follow English asking: "can you play tum hi ho" names something."""
    last = max((place for place, word in enumerate(words) if asking(word) and word not in _SMALL), default=-1)
    tail = words[last + 1 :]
    return len(tail) > 1 and words[last] in _ENGLISH_ASKING and any(word not in _ENGLISH_ASKING for word in tail)


def _trim_gently(words: Sequence[str]) -> tuple[str, ...]:
    """`words` without what asks in front (to its last verb or noun) and behind, keeping articles and pronouns."""
    start, end = 0, len(words)
    for place, word in enumerate(words):
        if not asking(word):
            break
        if word not in FUNCTION_WORDS:
            start = place + 1
    while start < end and words[start] in _BEFORE_NAME:
        start += 1
    while end > start:
        if words[end - 1] not in FUNCTION_WORDS and asking(words[end - 1]):
            end -= 1
        elif tuple(words[end - 2 : end]) in _BEHIND_NAME and end - 2 > start:
            end -= 2
        else:
            break
    return tuple(words[start:end])


def _names_within(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """What a title may be called that is part of a sentence of asking words: all of it, then spans of two words or
    more, longest first, also with an article in front and without "song" behind."""
    if words:
        yield tuple(words)
    if len(words) > 1 and words[-1] in _CALLED_ALONE and words[-2] in _CALLING:
        yield tuple(words[-1:])
    words = words[:_MOST_WORDS]
    for size in range(min(len(words), _LONGEST_NAME), 1, -1):
        for start in range(len(words) - size + 1):
            span = tuple(words[start : start + size])
            if _STOCK.issuperset(span):
                continue
            yield span
            if span[0] not in _DETERMINERS:
                yield ("the", *span)
                yield ("a", *span)
            if size == 2 and span[1] in {"song", "story"}:
                yield span[:1]


def _name_of_asking_words(words: Sequence[str]) -> tuple[str, ...]:
    """The longest part of a sentence of asking words that can only be a name: "let it go" in "play let it go please".

    () where all of it asks: "can you play it for me", "I'd love a song".
    """
    best: tuple[str, ...] = ()
    start = 0
    for end in range(len(words) + 1):
        if end < len(words) and words[end] in _NAMING | _BETWEEN:
            continue
        while start and start < end and words[start] in _RECIPIENTS:
            start += 1
        run = tuple(words[start:end])
        follows = words[end] if end < len(words) else "please"
        whom = start > 0 and words[start - 1] in _FOR_WHOM
        named = len(run) > 1 and not _NAMING.isdisjoint(run) and run[-1] not in _DETERMINERS
        if named and not whom and follows in _AFTER_NAME and len(run) > len(best):
            best = run
        start = end + 1
    return best


def _described(words: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """What a title is to be about, without the words that carry no meaning, and whether it is a particular one."""
    place = next((place for place, word in enumerate(words) if word in _ABOUT), len(words))
    tail = words[place + 1 :]
    about = tuple(word for word in tail if word not in FUNCTION_WORDS and not asking(word))
    return about, not _PARTICULAR.isdisjoint(words[:place])


def understand(text: str, sections: Sections) -> Request:
    """Read one request. Any text is allowed; one without words asks for anything at all."""
    another = bool(_CJK_ANOTHER.search(text))
    cjk = bool(_CJK.search(text))
    core = _without_cjk_asking(text) if cjk else text
    raw, words = fold(text), fold(core)
    mention = sections.find(words)
    section: str | None = None
    missing = False
    rest = words
    if mention:
        section, start, end = mention
        missing = not section
        before = words[:start]
        if before and before[-1] in _PREPOSITIONS:
            before = before[:-1]
        rest = (*before, *words[end:])
    trimmed = _trim(rest)
    leftover = tuple(word for word in trimmed if not asking(word))
    if (not leftover and not _names_behind(rest)) or (cjk and leftover in {("shou",), ("ge",)}):
        asked = set(rest) | set(raw)
        wish: Wish = "any"
        if any(phrase <= asked for phrase in _ONCE_MORE):
            wish = "again"
        elif another or asked & _ANOTHER:
            wish = "another"
        elif asked & _AGAIN:
            wish = "again"
        names = tuple(dict.fromkeys(_names_within(raw)))
        name = _name_of_asking_words(rest) if wish in {"any", "again"} and text.isascii() else ()
        if name:
            readings = tuple(dict.fromkeys((name, rest, raw)))
            return Request("named", readings, section or None, missing, " ".join(name), raw, (*names, *readings))
        return Request(wish, (), section or None, missing, names=names)
    gently = _trim_gently(rest)
    trimmed = trimmed or gently
    heard = without_misheard_asking(raw) if text.isascii() else ()
    found = dict.fromkeys((trimmed, gently, _trim_gently(heard), _trim(words), _trim_gently(words), words, raw))
    found.pop((), None)
    readings = tuple(found)
    embed = " ".join(gently or trimmed) if text.isascii() else core
    about, particular = _described(raw)
    return Request("named", readings, section or None, missing, embed, heard or raw, readings, about, particular)


def choose(ids: Sequence[int], history: Sequence[int], rng: random.Random) -> int | None:
    """One of `ids` at random: none is repeated until all were played, and never the last one unless it is alone.

    `history` is what this visit has heard, oldest first. None when there is nothing to choose from.
    """
    heard = Counter(history)
    last = history[-1] if history else None
    pool = [item for item in ids if item != last] or list(ids)
    if not pool:
        return None
    least = min(heard[item] for item in pool)
    return rng.choice([item for item in pool if heard[item] == least])
