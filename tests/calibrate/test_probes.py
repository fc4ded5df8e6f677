"""Probes: exact lengths and places whatever the tokenizer, answers that the text alone gives, clear refusals."""

import hashlib
import json
import random
import re
from collections import Counter
from itertools import groupby, islice

import numpy as np
import pytest
from random_models import EMBEDDED, ROOT
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from indexcache.calibrate.probes import DEPTHS, KINDS, make_probes, probe_mixture
from indexcache.calibrate.probes.composition import EncodedScript, compose
from indexcache.calibrate.probes.filler import Volume, read_filler
from indexcache.calibrate.probes.names import Vocabulary, words
from indexcache.calibrate.probes.pieces import Encoder
from indexcache.errors import DatasetError, SettingError, WindowError

OPENING = "<s>"
LENGTH = 512


def texts():
    lines = (EMBEDDED / "calibration.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"][:20_000] for line in lines[::3]]


TEXTS = texts()


def byte_level():
    """As GPT-2: words with the space before them, bytes for what is rare."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=900, special_tokens=[OPENING], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece():
    """As Llama's first ones: a space is put before a text, and BOS before that."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=[OPENING, "<unk>"], unk_token="<unk>", initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS[:2], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.post_processor = processors.TemplateProcessing(f"{OPENING} $A", special_tokens=[(OPENING, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {
    "embedded": lambda: AutoTokenizer.from_pretrained(EMBEDDED),
    "byte level": byte_level,
    "sentencepiece": sentencepiece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def probes(tokenizer):
    return make_probes(tokenizer, TEXTS, LENGTH, len(DEPTHS))


class Characters:
    """A tokenizer whose ids are code points."""

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids):
        return "".join(map(chr, ids))


def sentences(count, start=0):
    """Plain text, another one for another ``start``."""
    return " ".join(f"This is sentence {number} of many." for number in range(start, start + count))


def answer_ids(window):
    """The token ids that are scored: a list for each run of labels, so for each answer."""
    runs = groupby(enumerate(window.answers), key=lambda pair: pair[1] - pair[0])
    return [[window.token_ids[label + 1] for _, label in run] for _, run in runs]


def answers(tokenizer, window):
    """The texts that are scored."""
    return [tokenizer.decode(ids).strip() for ids in answer_ids(window)]


def places(ids, part):
    """Where ``part`` stands in ``ids``."""
    return [start for start in range(len(ids)) if list(ids[start : start + len(part)]) == list(part)]


def solve(kind, text):
    """The answers as a reader finds them, and where their first fact stands; each fact must stand once."""
    before, asked = re.match(r"(?s)(.*)(?:Question:|User: repeat)(.*)", text).groups()
    starts = []

    def only(pattern):
        (match,) = re.finditer(pattern, before)
        starts.append(match.start())
        return match[1]

    if kind in {"recall", "needles"}:
        names = re.findall(r"The \w+ of (\w+) is", asked)
        return [only(rf"The \w+ of {name} is (\d+)\.") for name in names], min(starts)
    if kind == "order":
        ordinal, form, name = re.search(r"(\w+)(?: request for a)? (\w+) about (\w+)", asked).groups()
        replies = list(re.finditer(rf"a {form} about {name}\. \w+: (\d+)\.", before))
        number = {"first": 0, "second": 1, "third": 2, "last": -1}[ordinal]
        return [replies[number][1]], replies[0].start()
    name = re.search(r"Answer: (?:VAR )?(\w+)", asked)[1]
    if kind == "two-hop":
        host = only(rf"{name} (?:lives in the house of|works for) (\w+)\.")
        return [only(rf"The (?:house|office) of {host} is in (\w+)\.")], min(starts)
    while not name.isdigit():
        name = only(rf"(?:VAR {name} = |Let {name} be (?:the same as )?)(\w+)")
    return [name], min(starts)


def test_probes_are_as_long_as_asked_and_end_with_an_answer(tokenizer, probes):
    opening = tokenizer("", verbose=False)["input_ids"]
    for probe in probes:
        assert len(probe.token_ids) == probe.length == LENGTH, probe.kind
        assert list(probe.token_ids[: len(opening)]) == opening, f"{probe.kind} opens with what opens a text"
        assert probe.answers[-1] == LENGTH - 2, "the last label is the last token"
        assert list(probe.answers) == sorted(set(probe.answers)), probe.kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "copy"])
def test_the_text_gives_the_answer_once(tokenizer, probes, kind):
    for probe in [probe for probe in probes if probe.kind == kind]:
        text = tokenizer.decode(probe.token_ids)
        assert answers(tokenizer, probe) == solve(kind, text)[0], text


def test_an_answer_has_the_same_tokens_where_it_is_planted(probes):
    for probe in probes:
        for ids in answer_ids(probe):
            starts = places(probe.token_ids, ids)
            assert len(starts) == 2, f"{probe.kind}: planted once and asked once as {ids}, but stands at {starts}"


def test_a_space_that_is_a_token_is_no_answer():
    probes = make_probes(Characters(), [sentences(400)], 2000, 2, kinds=["recall", "needles", "two-hop"])
    texts = [Characters().decode(ids) for probe in probes for ids in answer_ids(probe)]
    assert all(re.fullmatch(r"\d{5}|[A-Z][a-z]{5}", text) for text in texts), texts


def test_copies_repeat_their_passage_and_score_all_but_its_beginning(probes):
    for probe in [probe for probe in probes if probe.kind == "copy"]:
        passage = probe.token_ids[-32:]
        assert len(set(passage)) == 32, "no token twice"
        assert len(probe.answers) == 30
        first, last = places(probe.token_ids, passage)
        assert last == LENGTH - 32
        # Passage and heading stand there twice; the rest is filler.
        assert first / (LENGTH - 2 * 42) == pytest.approx(probe.depth, abs=0.1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "copy"])
def test_the_first_fact_stands_at_the_depth_asked_for(kind):
    tokenizer = Characters()
    for probe in make_probes(
        tokenizer, [sentences(1000)], 6000, 10, kinds=[kind], depths=(0.0, 0.25, 0.5, 0.75, 1.0)
    ):
        text = tokenizer.decode(probe.token_ids)
        place = solve(kind, text)[1]
        # Characters of filler only: planted lines do not read like it.
        filler = [match.end() for match in re.finditer(r"sentence \d+ of many\.", text)]
        depth = sum(end <= place for end in filler) / len(filler)
        assert depth == pytest.approx(probe.depth, abs=0.02), text


def test_kinds_depths_and_documents_are_balanced():
    probes = make_probes(Characters(), [sentences(200, 200 * number) for number in range(10)], 2000, 10)
    assert set(Counter((probe.kind, probe.depth) for probe in probes).values()) == {2}
    for kind in KINDS:
        documents = [probe.document for probe in probes if probe.kind == kind]
        assert sorted(documents) == list(range(10)), f"{kind}: a document each"


def test_a_kind_is_the_same_whatever_else_is_asked_for():
    documents = [sentences(200, 200 * number) for number in range(4)]
    among_all = [probe for probe in make_probes(Characters(), documents, 2000, 3) if probe.kind == "order"]
    assert make_probes(Characters(), documents, 2000, 3, kinds=["order"]) == among_all


def test_probes_are_what_they_were():
    """On every platform and for good: figures of other times are of the same probes."""
    probes = make_probes(Characters(), [sentences(200, 200 * number) for number in range(4)], 2000, 5, seed=3)
    digest = hashlib.sha256()
    for probe in probes:
        fields = (probe.kind, probe.depth, probe.length, probe.token_ids, probe.answers, probe.document)
        digest.update(repr(fields).encode())
    assert digest.hexdigest() == "e009efabca503c33ec54215d1d79b1b9d7873b54e0c07eda2676047e6192ee91"


def test_other_seeds_lengths_and_depths_give_other_probes():
    documents = [sentences(400)]

    def made(**changes):
        return make_probes(Characters(), documents, **{"length": 2000, "count_per_kind": 1, "seed": 0, **changes})

    sets = [made(), made(seed=1), made(length=2001), made(depths=[0.2]), made(count_per_kind=2)]
    assert all(one != other for place, one in enumerate(sets) for other in sets[:place])
    assert made() == made()


def test_texts_and_their_token_ids_give_the_same(tokenizer):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert make_probes(tokenizer, ids, 600, 1) == make_probes(tokenizer, TEXTS, 600, 1)


def test_no_more_documents_are_read_than_needed():
    documents = iter([sentences(100, 100 * number) for number in range(3 * len(KINDS) + 7)])
    make_probes(Characters(), documents, 1500, 3)
    assert len(list(documents)) == 7


def test_every_probe_has_a_document_of_its_own_while_there_are_any():
    def uses(documents):
        probes = make_probes(Characters(), documents, 1500, 2)
        return sorted(Counter(probe.document for probe in probes).values())

    documents = [sentences(100, 100 * number) for number in range(2 * len(KINDS))]
    assert uses(documents) == [1] * (2 * len(KINDS))
    counts = uses(documents[:5])
    assert len(counts) == 5, "all documents are used"
    assert counts[-1] - counts[0] <= 1, f"documents are used alike, but so often: {counts}"


def test_a_document_stands_at_other_depths_in_other_kinds():
    probes = make_probes(Characters(), [sentences(100, 100 * number) for number in range(5)], 1500, 5)
    depths = {number: {probe.depth for probe in probes if probe.document == number} for number in range(5)}
    assert all(len(of_document) > 3 for of_document in depths.values()), depths


def test_short_documents_are_joined_and_no_two_volumes_share_one():
    documents = [sentences(10, 10 * number) for number in range(7)]
    filler = read_filler(documents, Encoder(Characters()), 600)
    assert [volume.document for volume in filler.volumes] == [0, 3]
    assert Characters().decode(filler.volumes[1].ids.tolist()) == "".join(documents[3:6])


def test_lines_are_planted_where_clauses_end():
    tokenizer = Characters()
    for probe in make_probes(tokenizer, [sentences(400)], 3000, 3):
        text = tokenizer.decode(probe.token_ids)
        for line in re.finditer(
            r"\n(The|Request|User|VAR|Let|They|Since|Passage)", text[: probe.answers[0] - 150]
        ):
            assert text[line.start() - 1] in ".\n", text[line.start() - 40 : line.end()]


def test_without_clauses_lines_are_planted_exactly_at_their_depth():
    volume = Volume(0, np.arange(100, 200, dtype=np.int32), np.empty(0, dtype=np.int32))
    script = EncodedScript(lines=((0.5, (2, 2)), (0.25, (1,)), (1.0, (3,))), question=(4, 5), answers=(1,))
    window = compose([script], (9,), volume, 100 + 7, random.Random(0))
    expected = (9, *range(100, 125), 1, *range(125, 150), 2, 2, *range(150, 200), 3, 4, 5)
    assert window.token_ids == expected
    assert window.answers == (105,)


def test_nothing_planted_stands_in_the_filler():
    first = make_probes(Characters(), [sentences(400)], 2000, 2)
    planted = words("".join(Characters().decode(probe.token_ids) for probe in first)) - words(sentences(400))
    names = {word for word in planted if re.fullmatch(r"([^aeiou][aeiou]){3}|\d{5}", word)}
    assert len(names) > 40
    filler = sentences(400) + " ".join(names)
    second = "".join(
        Characters().decode(probe.token_ids) for probe in make_probes(Characters(), [filler], 2000, 2)
    )
    lines = re.findall(r"The \w+ of (\w+) is (\w+)\.", second)
    assert lines
    assert not {name.lower() for name, _ in lines} & names
    assert not {value for _, value in lines} & names


def test_filler_that_holds_every_name_is_refused():
    class Everything:
        def __contains__(self, word):
            return True

    with pytest.raises(DatasetError, match="stand in the filler already"):
        Vocabulary(Everything()).name(random.Random(0))


def test_training_uses_no_name_and_no_number_of_evaluation():
    documents = [sentences(2000)]
    evaluation = make_probes(Characters(), documents, 2000, 20)
    training = islice(probe_mixture(Characters(), documents, 2000), 100)
    held, seen = (
        words("".join(Characters().decode(window.token_ids) for window in windows)) - words(sentences(2000))
        for windows in (evaluation, training)
    )
    common = {word for word in held & seen if re.fullmatch(r"([^aeiou][aeiou]){3}|\d{5}", word)}
    assert not common
    assert len(seen) > 500, "training sees many names"


@pytest.mark.parametrize("length", [256, 1024])
def test_training_windows_are_exact_and_go_on(tokenizer, length):
    sizes = Counter()
    for window in islice(probe_mixture(tokenizer, TEXTS, length), 60):
        assert len(window.token_ids) == length
        assert window.answers[-1] == length - 2
        assert list(window.answers) == sorted(set(window.answers))
        sizes[len(window.answers)] += 1
    assert len(sizes) > 10, "windows differ in how much is asked"


def test_training_answers_are_what_was_planted(tokenizer):
    for window in islice(probe_mixture(tokenizer, TEXTS, 1024, kinds=["recall"]), 20):
        text = tokenizer.decode(window.token_ids)
        before, _, _ = text.partition("Question: What is the")
        names = re.findall(r"Answer: The \w+ of (\w+) is", text)
        planted = dict(re.findall(r"The \w+ of (\w+) is (\d+)\.", before))
        assert answers(tokenizer, window) == [planted[name] for name in names], text


def test_training_is_repeatable_and_another_seed_is_another_stream():
    def stream(seed):
        return list(islice(probe_mixture(Characters(), [sentences(400)], 2000, seed), 5))

    assert stream(1) == stream(1)
    assert stream(1) != stream(2)


def test_training_asks_for_all_kinds():
    text = "".join(
        Characters().decode(window.token_ids)
        for window in islice(probe_mixture(Characters(), [sentences(400)], 3000), 60)
    )
    for sign in ("What is the", "s of", "about", "VAR", "the same as", "lives in", "works for", "Passage"):
        assert sign in text, f"no window holds {sign!r}"


@pytest.mark.parametrize("make", [make_probes, probe_mixture])
def test_a_kind_that_does_not_exist_is_named(make):
    given = {"count_per_kind": 1} if make is make_probes else {}
    with pytest.raises(SettingError, match="'needle'") as raised:
        make(Characters(), [sentences(400)], 2000, kinds=["recall", "needle"], **given)
    assert all(kind in raised.value.hint for kind in KINDS)


@pytest.mark.parametrize("depths", [[], [1.1], [0.5, -0.1]])
def test_impossible_depths_are_refused(depths):
    with pytest.raises(SettingError, match="fraction"):
        make_probes(Characters(), [sentences(400)], 2000, 1, depths=depths)


@pytest.mark.parametrize("make", [make_probes, probe_mixture])
def test_too_little_filler_says_how_much_there_is(make):
    given = {"count_per_kind": 1} if make is make_probes else {}
    with pytest.raises(DatasetError, match="filler has 30 tokens, a probe of 2000"):
        make(Characters(), ["ten chars."] * 3, 2000, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_length_that_is_named_does(kind):
    def made(length):
        return make_probes(Characters(), [sentences(400)], length, 10, kinds=[kind])

    with pytest.raises(WindowError, match=f"32 tokens are too short for {kind}") as raised:
        made(32)
    least = int(re.search(r"give --window (\d+) or more", raised.value.hint)[1])
    assert len(made(least)) == 10
    with pytest.raises(WindowError):
        made(least - 1)


def test_the_least_length_that_is_named_does_for_all_kinds():
    with pytest.raises(WindowError, match="32 tokens are too short for") as raised:
        make_probes(Characters(), [sentences(400)], 32, 2)
    least = int(re.search(r"give --window (\d+) or more", raised.value.hint)[1])
    assert len(make_probes(Characters(), [sentences(400)], least, 2)) == 2 * len(KINDS)


def test_training_windows_that_nothing_fits_are_refused_at_once():
    with pytest.raises(WindowError, match="100 tokens are too short"):
        probe_mixture(Characters(), [sentences(400)], 100)


def test_each_kind_is_explained():
    page = (ROOT / "docs" / "probes.md").read_text("utf-8")
    assert tuple(re.findall(r"^### (\S+)$", page, re.MULTILINE)) == KINDS
    assert "0.1, 0.3, 0.5, 0.7\n  and 0.9" in page
    assert DEPTHS == (0.1, 0.3, 0.5, 0.7, 0.9)
