"""The six kinds of probes: what each plants and asks, so that the answer follows from the facts alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .scripts import Cast, Fact, Piece, Script, Sizes, Slots, sentence, spread

# What a name can have; each serves as "The key of X is 12345".
_NOUNS = ("key", "code", "number", "price")
_STATEMENT = "The {noun} of {name} is {value}"


def _pairs(cast: Cast, count: int) -> list[Slots]:
    noun = cast.draw.choice(_NOUNS)
    return [{"noun": noun, "name": cast.name(), "value": cast.number()} for _ in range(count)]


def _pair_facts(depths: Sequence[float], pairs: Sequence[Slots]) -> list[Fact]:
    return [Fact(depth, sentence(f"{_STATEMENT}.", pair)) for depth, pair in zip(depths, pairs, strict=True)]


def recall(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Key-value recall: pairs all over the text, and one is asked for, at ``depth``."""
    pairs = _pairs(cast, sizes.pairs)
    facts = _pair_facts([depth, *(cast.draw.random() for _ in pairs[1:])], pairs)
    asking = f"\nQuestion: What is the {{noun}} of {{name}}?\nAnswer: {_STATEMENT}"
    question = [piece for pair in pairs[: sizes.questions] for piece in sentence(asking, pair, answer="value")]
    return Script(facts, question)


def needles(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Several needles: facts from ``depth`` on, all asked for at once, in another order."""
    pairs = _pairs(cast, sizes.needles)
    facts = _pair_facts(spread(depth, len(pairs)), pairs)
    cast.draw.shuffle(pairs)
    question = list(sentence("\nQuestion: What are the {noun}s of", pairs[0]))
    for number, pair in enumerate(pairs):
        question += sentence(", {name}" if number else " {name}", pair)
    question.append(Piece("?\nAnswer:"))
    for number, pair in enumerate(pairs):
        question += sentence(f"{'.' if number else ''} {_STATEMENT}", pair, answer="value")
    return Script(facts, question)


@dataclass(frozen=True)
class _Phrasing:
    """A way to say facts and to ask for them; the answer is the ``{value}`` at the end of ``asking``."""

    fact: str
    asking: str
    second: str = ""


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
    depths = spread(depth, len(replies))
    facts = [Fact(where, sentence(phrasing.fact, reply)) for where, reply in zip(depths, replies, strict=True)]
    for count in range(sizes.others):
        # In turn the same form about another name, and another form about the same name.
        other = {"form": draw.choice(others), "name": name} if count % 2 else {"form": form, "name": cast.name()}
        facts.append(Fact(draw.random(), sentence(phrasing.fact, {**other, "value": cast.number()})))
    number = draw.randrange(len(replies))
    last = number == len(replies) - 1 and draw.random() < 0.5
    slots = {**replies[number], "ordinal": "last" if last else _ORDINALS[number]}
    question = sentence(phrasing.asking, slots, answer="value")
    return Script(facts, question)


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
        depths = spread(cast.draw.random() if chain else depth, len(names))
        facts.append(Fact(depths[0], sentence(phrasing.fact, {"name": names[0], "value": value})))
        for where, name, successor in zip(depths[1:], names, names[1:], strict=False):
            facts.append(Fact(where, sentence(phrasing.second, {"name": name, "next": successor})))
        slots.append({"name": names[-1], "value": value})
    question = sentence(phrasing.asking, slots[0], answer="value")
    return Script(facts, question)


_HOUSES = (
    _Phrasing(
        "They say that {name} lives in the house of {next}.",
        "\nQuestion: Where does {name} live?\nAnswer: {name} lives in {value}",
        "The house of {next} is in {value}.",
    ),
    _Phrasing(
        "Since last year {name} works for {next}.",
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
        depths = spread(draw.random() if person else depth, 2)
        facts += [Fact(where, sentence(text, slots)) for where, text in zip(depths, templates, strict=True)]
        people.append(slots)
    question = sentence(phrasing.asking, people[0], answer="value")
    return Script(facts, question)


def copy(cast: Cast, depth: float, sizes: Sizes) -> Script:
    """Copy at a distance: tokens of the filler in random order at ``depth``, and again at the end."""
    draw = cast.draw
    count = min(sizes.passage, len(cast.token_ids))
    tokens = tuple(draw.sample(cast.token_ids, count))  # none twice: what follows a token is certain
    slots = {"name": cast.name()}
    fact = Fact(depth, (*sentence("Passage {name}:", slots), Piece(tokens)))
    lead = min(sizes.lead, count - 1)
    question = (
        *sentence("\nPassage {name}:", slots),
        Piece(tokens[:lead]),
        Piece(tokens[lead:], answers=True),
    )
    return Script([fact], question)


Write = Callable[[Cast, float, Sizes], Script]

SCRIPTS: dict[str, Write] = {
    "recall": recall,
    "needles": needles,
    "order": order,
    "variables": variables,
    "two-hop": two_hop,
    "copy": copy,
}
