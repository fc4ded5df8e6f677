"""What a probe plants and asks: facts at depths, then a question whose answer follows from them alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from .names import Vocabulary

Slots = dict[str, str]


@dataclass(frozen=True)
class Piece:
    """A part of a sentence that is encoded by itself.

    Args:
        content: text, or token ids where a probe is about tokens.
        scored: whether its tokens are an answer.
    """

    content: str | tuple[int, ...]
    scored: bool = False


@dataclass(frozen=True)
class Fact:
    """A planted line; ``depth`` is the fraction of the filler before it."""

    depth: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Script:
    """All that a probe is apart from its filler: facts in order of depth, and what stands at the end."""

    facts: tuple[Fact, ...]
    question: tuple[Piece, ...]


@dataclass(frozen=True)
class Sizes:
    """How much a probe plants and asks.

    Args:
        pairs: facts of a key-value recall, the one asked for included.
        questions: how many of them are asked for.
        needles: facts that are all asked for at once.
        repeats: how often the request that is asked about is made.
        others: other requests between them.
        links: variables that pass a value on.
        chains: variables that were given another value, or people who live elsewhere.
        passage: tokens of a passage to copy.
        lead: its first tokens, which are not scored: they say which passage it is.
    """

    pairs: int = 6
    questions: int = 1
    needles: int = 4
    repeats: int = 3
    others: int = 2
    links: int = 2
    chains: int = 1
    passage: int = 32
    lead: int = 2


LEAST = Sizes(pairs=2, questions=1, needles=2, repeats=2, others=1, links=1, chains=1, passage=12, lead=1)
MOST = Sizes(pairs=8, questions=4, needles=6, repeats=4, others=4, links=3, chains=2, passage=64, lead=4)


def random_sizes(draw: random.Random, share: float = 1.0) -> Sizes:
    """Sizes for training: from ``LEAST`` up to ``share`` of the way to ``MOST``."""
    sizes = {}
    for item in fields(Sizes):
        least, most = getattr(LEAST, item.name), getattr(MOST, item.name)
        sizes[item.name] = draw.randint(least, least + round(share * (most - least)))
    return Sizes(**sizes)


class Cast:
    """What one window's scripts are made of; no name and no number comes twice.

    Args:
        draw: the window's random numbers.
        vocabulary: where names and numbers come from.
        token_ids: what passages are made of, ascending.
    """

    def __init__(self, draw: random.Random, vocabulary: Vocabulary, token_ids: Sequence[int]) -> None:
        self.draw = draw
        self.token_ids = token_ids
        self._vocabulary = vocabulary
        self._used: set[str] = set()

    def name(self) -> str:
        """A name that the window does not hold yet."""
        return self._new(self._vocabulary.name)

    def number(self) -> str:
        """A number that the window does not hold yet."""
        return self._new(self._vocabulary.number)

    def _new(self, make: Callable[[random.Random], str]) -> str:
        while (word := make(self.draw)) in self._used:
            pass
        self._used.add(word)
        return word


def _sentence(template: str, slots: Slots, scored: str = "") -> tuple[Piece, ...]:
    """The pieces of a template; a slot takes the space before it along, as tokenizers do."""
    return tuple(
        Piece(part.format_map(slots), bool(scored) and part.strip() == f"{{{scored}}}")
        if part.endswith("}")
        else Piece(part)
        for part in _parts(template)
    )


@lru_cache
def _parts(template: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"( ?\{\w+\})", template) if part)


def _spread(depth: float, count: int) -> list[float]:
    """``count`` depths from ``depth`` on, evenly towards the end."""
    return [depth + (1 - depth) * place / count for place in range(count)]


def _script(facts: Sequence[Fact], question: Sequence[Piece]) -> Script:
    return Script(tuple(sorted(facts, key=lambda fact: fact.depth)), tuple(question))


@dataclass(frozen=True)
class _Phrasing:
    """A way to say facts and to ask for them; the answer is the ``{value}`` at the end of ``asking``."""

    fact: str
    asking: str
    second: str = ""


_PAIRS = (
    _Phrasing(
        "The key of {name} is {value}.",
        "\nQuestion: What is the key of {name}?\nAnswer: The key of {name} is {value}",
    ),
    _Phrasing(
        "{name} has the number {value}.",
        "\nQuestion: Which number has {name}?\nAnswer: {name} has the number {value}",
    ),
    _Phrasing("The code for {name} is {value}.", "\nWhat is the code for {name}? The code for {name} is {value}"),
    _Phrasing("{name}: {value}", "\nAs said above, {name}: {value}"),
)


def recall(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Key-value recall: pairs all over the text, and one is asked for, at ``depth``."""
    phrasing = cast.draw.choice(_PAIRS)
    pairs = [{"name": cast.name(), "value": cast.number()} for _ in range(sizes.pairs)]
    depths = [depth, *(cast.draw.random() for _ in pairs[1:])]
    facts = [Fact(where, _sentence(phrasing.fact, pair)) for where, pair in zip(depths, pairs, strict=True)]
    question = [
        piece for pair in pairs[: sizes.questions] for piece in _sentence(phrasing.asking, pair, scored="value")
    ]
    return _script(facts, question)


def needles(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Several needles: facts from ``depth`` on, all asked for at once, in another order."""
    phrasing = cast.draw.choice(_PAIRS)
    pairs = [{"name": cast.name(), "value": cast.number()} for _ in range(sizes.needles)]
    facts = [
        Fact(where, _sentence(phrasing.fact, pair))
        for where, pair in zip(_spread(depth, len(pairs)), pairs, strict=True)
    ]
    cast.draw.shuffle(pairs)
    names = ", ".join(pair["name"] for pair in pairs)
    question = [Piece(f"\nQuestion: Which numbers belong to {names}?\nAnswer:")]
    for pair in pairs:
        question += _sentence("\n{name} {value}", pair, scored="value")
    return _script(facts, question)


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_FORMS = ("poem", "letter", "song", "story", "riddle", "speech")
_REQUESTS = (
    _Phrasing(
        "Request: a {form} about {name}. Reply: {value}.",
        "\nQuestion: What was the reply to the {ordinal} request for a {form} about {name}?\nReply: {value}",
    ),
    _Phrasing(
        "User: write a {form} about {name}. Assistant: {value}.",
        "\nUser: repeat your {ordinal} {form} about {name}. Assistant: {value}",
    ),
)


def order(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Order of repeated requests: the same request from ``depth`` on with other replies; the n-th is asked for."""
    draw = cast.draw
    phrasing = draw.choice(_REQUESTS)
    form, *others = draw.sample(_FORMS, 3)
    name = cast.name()
    replies = [{"form": form, "name": name, "value": cast.number()} for _ in range(sizes.repeats)]
    depths = _spread(depth, len(replies))
    facts = [Fact(where, _sentence(phrasing.fact, reply)) for where, reply in zip(depths, replies, strict=True)]
    for count in range(sizes.others):
        # In turn another form about the same name, and the same form about another name.
        other = {"form": draw.choice(others), "name": name} if count % 2 else {"form": form, "name": cast.name()}
        facts.append(Fact(draw.random(), _sentence(phrasing.fact, {**other, "value": cast.number()})))
    asked = draw.randrange(len(replies))
    last = asked == len(replies) - 1 and draw.random() < 0.5
    slots = {**replies[asked], "ordinal": "last" if last else _ORDINALS[asked]}
    question = _sentence(phrasing.asking, slots, scored="value")
    return _script(facts, question)


_VARIABLES = (
    _Phrasing(
        "VAR {name} = {value}",
        "\nQuestion: What is the value of VAR {name}?\nAnswer: VAR {name} = {value}",
        "VAR {next} = {name}",
    ),
    _Phrasing(
        "Let {name} be {value}.",
        "\nQuestion: What is {name}?\nAnswer: {name} is {value}",
        "Let {next} be the same as {name}.",
    ),
)


def variables(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Variable tracking: a number is given to a variable at ``depth`` and passed on; the last one is asked for."""
    phrasing = cast.draw.choice(_VARIABLES)
    facts: list[Fact] = []
    slots: list[Slots] = []
    for chain in range(sizes.chains + 1):
        names = [cast.name() for _ in range(sizes.links + 1)]
        value = cast.number()
        depths = _spread(cast.draw.random() if chain else depth, len(names))
        facts.append(Fact(depths[0], _sentence(phrasing.fact, {"name": names[0], "value": value})))
        for where, name, following in zip(depths[1:], names, names[1:], strict=False):
            facts.append(Fact(where, _sentence(phrasing.second, {"name": name, "next": following})))
        slots.append({"name": names[-1], "value": value})
    question = _sentence(phrasing.asking, slots[0], scored="value")
    return _script(facts, question)


_HOUSES = (
    _Phrasing(
        "{name} lives in the house of {next}.",
        "\nQuestion: Where does {name} live?\nAnswer: {name} lives in {value}",
        "The house of {next} is in {value}.",
    ),
    _Phrasing(
        "{name} works for {next}.",
        "\nQuestion: In which city does {name} work?\nAnswer: {name} works in {value}",
        "The office of {next} is in {value}.",
    ),
)


def two_hop(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Two-hop facts: X lives with Y, Y's house is in Z, in either order, the first at ``depth``; where is X?"""
    draw = cast.draw
    phrasing = draw.choice(_HOUSES)
    facts: list[Fact] = []
    people: list[Slots] = []
    for person in range(sizes.chains + 1):
        slots = {"name": cast.name(), "next": cast.name(), "value": cast.name()}
        templates = [phrasing.fact, phrasing.second]
        draw.shuffle(templates)
        depths = _spread(draw.random() if person else depth, 2)
        facts += [Fact(where, _sentence(text, slots)) for where, text in zip(depths, templates, strict=True)]
        people.append(slots)
    question = _sentence(phrasing.asking, people[0], scored="value")
    return _script(facts, question)


def copy(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Copy at a distance: tokens of the filler in random order at ``depth``, and again at the end."""
    draw = cast.draw
    count = min(sizes.passage, len(cast.token_ids))
    tokens = tuple(draw.sample(cast.token_ids, count))  # none twice: what follows a token is certain
    slots = {"name": cast.name()}
    fact = Fact(depth, (*_sentence("Passage {name}:", slots), Piece(tokens)))
    lead = min(sizes.lead, count - 1)
    question = (
        *_sentence("\nPassage {name}:", slots),
        Piece(tokens[:lead]),
        Piece(tokens[lead:], scored=True),
    )
    return _script([fact], question)


Write = Callable[[Cast, float, Sizes], Script]

SCRIPTS: dict[str, Write] = {
    "recall": recall,
    "needles": needles,
    "order": order,
    "variables": variables,
    "two-hop": two_hop,
    "copy": copy,
}
