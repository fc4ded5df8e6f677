"""Plans, recipes, bench results and frozen tokens at random: read as they are meant, or refused in one line."""

import copy
import json
import os
import random
import shlex
import shutil
from contextlib import suppress

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from sealed_plans import sealed

from indexcache.calibrate.frozen import frozen_bytes, thaw, token_sha256
from indexcache.errors import DatasetError, ExportError, IndexcacheError, PlanError, SettingError
from indexcache.pattern import Pattern
from indexcache.recipes.schema import Recipe, read_recipe
from indexcache.search.export.engines import ENGINES
from indexcache.search.export.settings import export
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.price.prefills import read_prefills
from indexcache.search.report.checks import read_checks
from indexcache.search.report.timing import read_timing
from indexcache.search.run.folder import write_report

NASTY = [
    "", "F", "S", "SFFFFFFF", "FFFFFFFX", "FFFFFFF", "FFFFFFFFF", "ffffffff", "F" * 8, "FSSSSSSS",
    "\x1b[2J", "a\nb", "\x00", "\u202eevil", "\ud800", "<script>alert(1)</script>", "[red]x[/red]", ":boom:",
    "$(touch it)", "`touch it`", "'; touch it; '", '"', "--trust-remote-code", "../../etc/passwd", "|x|", "é" * 50,
    0, 1, -1, 7, 10**9, 10**18, 10**30, 10**60, -(10**30), 0.5, -0.0, 1e308, -1e308, 5e-324, 1e-12,
    float("nan"), float("inf"), -float("inf"), None, True, False, [], {}, [[]], [1, 2], {"a": 1}, ["F"] * 8,
]  # fmt: skip
RECIPE = {
    "schema_version": 1, "model": "a/b", "dataset": "text.jsonl", "window": 256, "windows": 16, "heldout": 16,
    "dtype": "float32", "seed": 0, "strategy": "fast", "pin": [0, 2], "keep": 0.25, "standard_errors": 3.0,
    "selfcheck": True, "weights_hash": "whole",
}  # fmt: skip
BENCH = {
    "schema_version": 1, "model": "a/b", "config_sha256": "0" * 64, "pattern": "FS", "device": "cpu",
    "dtype": "float32", "indexer": "stock", "attention": "stock", "random_weights": False, "repeats": 3,
    "versions": {"torch": "2"},
    "points": [{"context": 8, "all_full": {"seconds": 1.0, "indexer_share": 0.5}, "plan": None}],
}  # fmt: skip

anything = st.recursive(
    st.sampled_from(NASTY) | st.text(max_size=20) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(document):
    """Every (container, key) of a document."""
    left = [document]
    while left:
        container = left.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            yield container, key
            if isinstance(container[key], dict | list):
                left.append(container[key])


def mutated(document, draw, value):
    """The document with one to three of its fields changed, dropped, doubled, renamed or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        fields = list(places(document))
        container, key = draw.choice(fields)
        other, other_key = draw.choice(fields)
        way = draw.randrange(6)
        if way <= 1:
            container[key] = copy.deepcopy(value)
        elif way == 2:
            del container[key]
        elif way == 3 and isinstance(container, dict):
            container[f"{key}x"] = container[key]
        elif way == 4 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif isinstance(container[key], str) and container[key]:
            text = list(container[key])
            text[draw.randrange(len(text))] = draw.choice("FSXs0 é")
            container[key] = "".join(text)
        else:
            container[key] = copy.deepcopy(other[other_key])
    return document


def damaged(content, draw):
    """The bytes with some of them changed, left out, doubled, or others in between."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(len(content)) if content else 0
        way = draw.randrange(5)
        if way == 0 and content:
            content[place] ^= 1 << draw.randrange(8)
        elif way == 1:
            del content[place : place + draw.randrange(1, 200)]
        elif way == 2:
            content[place:place] = content[place : place + draw.randrange(1, 200)]
        elif way == 3:
            content[place:place] = draw.randbytes(draw.randrange(1, 8))
        else:
            content[place:place] = draw.choice([b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"]", b'"', b"\x00", b"&a *a"])
    return bytes(content)


def fuzz(count, check):
    """Calls ``check(draw, value)`` with ``count`` random generators and values, the same each time."""

    @seed(0)
    @settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(st.integers(0, 1 << 48), anything)
    def run(number, value):
        check(random.Random(number), value)

    run()


def outcome(read, path, kinds):
    """What was read, or the fault if the refusal is not one line that names the file."""
    try:
        return read(path), None
    except kinds as error:
        line = error.line()
        fine = line.isprintable() and path.name in line and len(line) < 5000
        return None, None if fine else f"refused with {line[:300]!r}"
    except BaseException as error:  # hypothesis would try again and again
        return None, f"{type(error).__name__}: {str(error)[:300]}"


def use(plan, folder, draw, render):
    """Cuts, exports and reports a plan that was read; what went wrong, or None."""
    sites, pattern = len(plan.model.site_layers), Pattern(plan.result.pattern)
    assert len(pattern) == sites
    assert len(plan.result.layer_pattern) == plan.model.layers
    for step in [*plan.search.steps, *plan.search.uniform, plan.result]:
        assert Pattern(step.pattern).kept == step.kept
    with suppress(PlanError):
        again = cut(plan, keep=draw.choice([0.01, 0.5, 1.0]))
        assert Pattern(again.result.pattern).kept == again.result.kept
    for engine in ENGINES:
        with suppress(ExportError):
            pasted = export(plan, engine).paste
            assert pasted.replace("\n", "").isprintable() or not plan.as_json().replace("\n", "").isprintable()
            if engine in ("vllm", "sglang", "atom", "lmdeploy", "tokenspeed"):
                assert plan.model.id in shlex.split(pasted)
    if render:
        write_report(folder, plan)
        html = (folder / "report.html").read_text("utf-8")
        assert "<script>alert" not in html
        assert "<script" not in (folder / "report.md").read_text("utf-8")


@pytest.fixture(scope="module")
def valid(searched):
    return json.loads((searched / "plan.json").read_text())


@pytest.mark.reliability("R11")
@pytest.mark.parametrize("way", ["fields", "bytes", "structures"])
def test_plans(valid, tmp_path, cases, full, way):
    path, text = tmp_path / "plan.json", json.dumps(valid, indent=2).encode()
    count = {"fields": 4000, "bytes": 2000, "structures": 500}[way] if full else 120
    read, rendered = 0, 0

    def check(draw, value):
        nonlocal read, rendered
        if way == "fields":
            content = sealed(mutated(valid, draw, value)).encode()
        elif way == "bytes":
            content = damaged(text, draw)
        else:
            content = json.dumps({"schema_version": valid["schema_version"], "model": value} if value else value)
            content = content.encode()
        path.write_bytes(content)
        plan, fault = outcome(read_plan, path, PlanError)
        if plan is not None:
            read += 1
            rendered += (wanted := rendered < (40 if full else 4))
            _, fault = outcome(lambda _: use(plan, tmp_path, draw, wanted), path, IndexcacheError)
        cases.check(fault is None, f"{fault} in {content[:300]}")

    fuzz(count, check)
    assert read > 0 or way != "fields", "no changed plan was read at all: the changes are too wild to test much"


@pytest.mark.reliability("R11")
@pytest.mark.parametrize("way", ["fields", "bytes", "structures"])
def test_recipes(tmp_path, cases, full, way):
    path, text = tmp_path / "recipe.yaml", yaml.safe_dump(RECIPE).encode()
    assert read_recipe(str(_written(path, text))) == Recipe(**RECIPE)
    count = {"fields": 2000, "bytes": 1500, "structures": 1000}[way] if full else 100

    def check(draw, value):
        if way == "bytes":
            content = damaged(text, draw)
        else:
            document = mutated(RECIPE, draw, value) if way == "fields" else value
            content = _dumped(document, draw)
        _, fault = outcome(lambda path: read_recipe(str(path)), _written(path, content), SettingError)
        cases.check(fault is None, f"{fault} in {content[:300]}")

    fuzz(count, check)


@pytest.mark.reliability("R11")
def test_bench_results(tmp_path, cases, full):
    text = json.dumps(BENCH).encode()
    assert read_prefills(_written(tmp_path / "bench.json", text), "FS") is not None

    def check(draw, value):
        content = damaged(text, draw) if draw.random() < 0.5 else json.dumps(mutated(BENCH, draw, value)).encode()
        path = _written(tmp_path / "bench.json", content)
        _, fault = outcome(lambda path: read_prefills(path, "FS"), path, PlanError)
        cases.check(fault is None, f"{fault} in {content[:300]}")

    fuzz(1000 if full else 60, check)


def _written(path, content):
    path.write_bytes(content)
    return path


def _dumped(document, draw):
    """As YAML, or as JSON, which is nearly YAML and has other escapes."""
    if draw.random() < 0.5:
        return json.dumps(document).encode()
    try:
        return yaml.safe_dump(document, allow_unicode=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        return json.dumps(document).encode()


WRONG_JSON = {
    "empty": b"",
    "a BOM and nothing": b"\xef\xbb\xbf",
    "UTF-16": '{"schema_version": 1}'.encode("utf-16"),
    "not UTF-8": b'{"schema_version": "\xff"}',
    "a key twice": b'{"schema_version": 1, "schema_version": 1}',
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "nested 40 times": b"[" * 40 + b"]" * 40,
    "a huge number": b'{"schema_version": 1' + b"0" * 5000 + b"}",
    "NaN": b'{"schema_version": NaN}',
    "infinity": b'{"schema_version": 1e999}',
    "a null byte": b'{"schema_version\x00": 1}',
    "an escape sequence": b'{"schema_version": "\\u001b[2J"}',
    "another language": b"schema_version: 1",
    "a word": b'"plan"',
    "two documents": b"{} {}",
}
WRONG_YAML = {
    "empty": b"",
    "a BOM and nothing": b"\xef\xbb\xbf",
    "UTF-16": "window: 8".encode("utf-16"),
    "not UTF-8": b"model: \xff",
    "a key twice": b"window: 8\nwindow: 9",
    "a key twice, quoted": b"window: 8\n'window': 9",
    "an anchor": b"model: &a x",
    "billion laughs": b"a: &a [x,x]\n"
    + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 121)),
    "a merge": b"<<: {window: 8}",
    "a tag": b"model: !!python/object/apply:os.system [true]",
    "a harmless tag": b"window: !!int 8",
    "deep lists": b"pin: " + b"[" * 60_000,
    "deep blocks": b"".join(b" " * n + b"a:\n" for n in range(200)),
    "nested 40 times": b"pin: " + b"[" * 40 + b"]" * 40,
    "a huge number": b"window: 1" + b"0" * 5000,
    "a large number": b"window: 1" + b"0" * 39,
    "NaN": b"keep: .nan",
    "infinity": b"max_delta: .inf",
    "a date": b"model: 2001-01-01",
    "an impossible date": b"model: 2001-99-99",
    "no word as a key": b"1: 2",
    "a list as a key": b"? [a]\n: 2",
    "nothing as a key": b"~: 2",
    "an escape sequence": b'model: "\\e[2J"',
    "a line break": b'model: "a\\nb"',
    "text that runs backwards": 'dataset: "\u202eabc"'.encode(),
    "trust": b"trust_remote_code: true",
    "pickles": b"allow_pickle: true",
    "two documents": b"window: 8\n---\nwindow: 9",
    "a list": b"- window: 8",
    "one of too many letters": b"model: " + b"x" * (70 << 10),
}


@pytest.mark.reliability("R11")
@pytest.mark.parametrize(
    ("name", "read", "kind", "contents"),
    [
        ("plan.json", read_plan, PlanError, WRONG_JSON),
        ("bench.json", lambda path: read_prefills(path, "FS"), PlanError, WRONG_JSON),
        ("evaluation.json", read_checks, PlanError, WRONG_JSON),
        ("timing.json", read_timing, PlanError, WRONG_JSON),
        ("recipe.yaml", lambda path: read_recipe(str(path)), SettingError, WRONG_YAML),
    ],
)
def test_documents_that_are_wrong_on_purpose(tmp_path, cases, name, read, kind, contents):
    for what, content in contents.items():
        document, fault = outcome(read, _written(tmp_path / name, content), kind)
        cases.check(document is None and fault is None, f"{what}: {fault or 'it was read'}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("window: 8\nseed: 1\nwindow: 9", "line 3: key 'window' is given twice"),
        ("a: &a [x]", "line 1: anchors and aliases are not allowed"),
        ("model: a\n  b: [", "line 2: "),
        ("window: 1" + "0" * 5000, "line 1: a number of 5001 digits"),
        ('model: "\\e[2J"', r"field model holds the character \u001b"),
        ("pin: [0, x]", "pin.1 is 'x'"),
        ("window: 8" + " " * (1 << 17), "is larger than 64 KiB"),
    ],
)
def test_a_refused_recipe_says_where_and_why(tmp_path, content, says):
    with pytest.raises(SettingError) as caught:
        read_recipe(str(_written(tmp_path / "recipe.yaml", content.encode())))
    assert says in str(caught.value)


def test_a_byte_order_mark_is_no_fault(tmp_path, valid):
    assert read_recipe(str(_written(tmp_path / "a.yaml", b"\xef\xbb\xbfwindow: 8"))).window == 8
    text = b"\xef\xbb\xbf" + json.dumps(valid).encode()
    assert (
        read_plan(_written(tmp_path / "plan.json", text)).as_json()
        == json.dumps(valid, indent=2, ensure_ascii=False) + "\n"
    )


def odd_files(folder, ending):
    """Paths with something else than a file of text behind them, by what it is."""
    made = {what: folder / f"{number}{ending}" for number, what in enumerate(("pipe", "loop", "zero", "folder"))}
    os.mkfifo(made["pipe"])
    made["loop"].symlink_to(made["loop"])
    made["zero"].symlink_to("/dev/zero")
    made["folder"].mkdir()
    made["large"] = folder / f"large{ending}"
    with made["large"].open("wb") as file:
        file.truncate(20 << 30)
    return made | {
        "a name too long": folder / ("x" * 300 + ending),
        "a path too long": folder / ("x/" * 3000) / f"x{ending}",
        "below a file": folder / f"large{ending}" / f"x{ending}",
    }


@pytest.mark.reliability("R11")
@pytest.mark.parametrize(
    ("ending", "read", "kind"),
    [
        (".json", read_plan, PlanError),
        (".json", lambda path: read_prefills(path, "FS"), PlanError),
        (".yaml", lambda path: read_recipe(str(path)), SettingError),
        (".safetensors", thaw, DatasetError),
    ],
)
def test_what_is_no_file(tmp_path, cases, ending, read, kind):
    for what, path in odd_files(tmp_path, ending).items():
        try:
            document, line = read(path), None
        except kind as error:
            document, line = None, error.line()
        cases.check(document is None and (line is None or line.isprintable()), f"{what}: {document or line}")


def token_files():
    ids, documents = np.zeros((2, 4), np.int32), np.zeros(2, np.int32)
    good = {
        "calibration": ids, "heldout": ids, "calibration_documents": documents, "heldout_documents": documents,
    }  # fmt: skip
    yield "one is missing", save({name: good[name] for name in list(good)[:3]})
    yield "one too many", save({**good, "other": ids})
    for what, other in {
        "int64": ids.astype(np.int64),
        "float": ids.astype(np.float32),
        "half": ids.astype(np.float16),
        "one row": ids[0],
        "three dimensions": ids[None],
        "negative ids": ids - 1,
        "shorter windows": ids[:, :2],
        "windows of none": ids[:, :0],
        "fewer documents": ids[:1],
    }.items():
        yield what, save({**good, "heldout": other})
    yield "documents in two dimensions", save({**good, "heldout_documents": documents[None]})
    yield "documents as floats", save({**good, "heldout_documents": documents.astype(np.float32)})
    content = save(good)
    for dtype in ("BF16", "F8_E4M3", "U128", "\\u001b"):
        yield f"dtype {dtype}", content.replace(b'"I32"', json.dumps(dtype).encode(), 1)
    yield "a huge shape", content.replace(b"[2,4]", b"[2,9]", 1)
    yield "shape beyond 64 bits", content.replace(b"[2,4]", b"[9e9]", 1)
    yield "an absurd header", b"\xff" * 8 + content[8:]
    yield "cut", content[:-1]
    yield "longer", content + b"\x00"


@pytest.mark.reliability("R11", "R5")
def test_token_files_that_are_wrong_on_purpose(tmp_path, cases):
    for what, content in token_files():
        document, fault = outcome(thaw, _written(tmp_path / "windows.safetensors", bytes(content)), DatasetError)
        cases.check(document is None and fault is None, f"{what}: {fault or 'it was read'}")


@pytest.mark.reliability("R5", "R8")
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("windows", 5, "windows of 6, the plan 5"), ("heldout_windows", 9, "heldout_windows of 4, the plan 9")],
)
def test_tokens_that_a_plan_describes_otherwise(run_cli, searched, tmp_path, field, value, says):
    folder = shutil.copytree(searched, tmp_path / "run")
    document = json.loads((folder / "plan.json").read_text())
    document["tokens"][field] = value
    (folder / "plan.json").write_text(sealed(document))
    code, out, err = run_cli("eval", folder)
    assert (code, out, says in err) == (2, "", True)


@pytest.mark.reliability("R5", "R8")
def test_tokens_that_the_model_does_not_know(run_cli, searched, tmp_path):
    """Plan and tokens agree, so that only the model can tell."""
    folder = shutil.copytree(searched, tmp_path / "run")
    windows = thaw(folder / "windows.safetensors")
    windows.heldout[0, 0] = 4096
    (folder / "windows.safetensors").write_bytes(frozen_bytes(windows))
    document = json.loads((folder / "plan.json").read_text())
    document["tokens"]["sha256"] = token_sha256(windows)
    (folder / "plan.json").write_text(sealed(document))
    code, out, err = run_cli("eval", folder)
    assert (code, out, "hold id 4096, but the model knows 4096" in err) == (2, "", True)
