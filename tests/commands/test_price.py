"""price: a mix of requests by made-up times, the cheapest budget, and one line for whatever goes wrong."""

import json
import shutil

import pytest

from indexcache.commands.traffic import requests_of
from indexcache.errors import SettingError
from indexcache.search.plan.file import read_plan
from indexcache.search.price.decodes import DecodeRecord, decode_file, read_decodes
from indexcache.search.price.prefills import PrefillRecord, prefill_file

CONTEXTS = (1000, 4000, 16_000)
COMMON = {
    "model": "made up", "config_sha256": "0" * 64, "device": "cuda: X", "dtype": "bfloat16", "indexer": "chunked",
    "attention": "sparse", "random_weights": False, "repeats": 3, "versions": {},
}  # fmt: skip


def prefill_seconds(context, shared):
    """All full has a quadratic part, of which every shared site of eight takes an eighth."""
    return 1e-4 * context + 1e-8 * context**2 * (1 - shared / 8)


def step_seconds(context, batch, shared):
    return 0.01 + batch * 1e-7 * context * (1 - shared / 8)


def write_times(folder, pattern, device="cuda: X", contexts=CONTEXTS, batches=(1, 8)):
    shared = pattern.count("S")
    common = COMMON | {"pattern": pattern, "device": device}
    points = [
        {
            "context": context,
            "all_full": {"seconds": prefill_seconds(context, 0), "indexer_share": 0.5},
            "plan": {"seconds": prefill_seconds(context, shared), "indexer_share": 0.1},
        }
        for context in contexts
    ]
    text = PrefillRecord.model_validate(common | {"points": points}).as_json()
    prefill_file(folder / "plan.json").write_text(text)

    def time(context, batch, shared):
        seconds = step_seconds(context, batch, shared)
        return {"seconds": seconds, "least": seconds, "most": seconds, "indexer_share": None, "read_bytes": None}

    points = [
        {"context": c, "batch": b, "all_full": time(c, b, 0), "plan": time(c, b, shared)}
        for c in contexts
        for b in batches
    ]
    extra = {"steps": 8, "filled": "random", "launched": "graph", "busy": "", "points": points}
    decode_file(folder / "plan.json").write_text(DecodeRecord.model_validate(common | extra).as_json())


@pytest.fixture
def run(searched, tmp_path):
    """A copy of the finished run, with made-up times beside it."""
    folder = shutil.copytree(searched, tmp_path / "run")
    write_times(folder, read_plan(folder).result.pattern)
    return folder


@pytest.fixture
def priced(run, run_cli):
    def price(*options):
        code, out, err = run_cli("price", run / "plan.json", "--json", *options)
        assert code == 0, err
        return json.loads(out)

    return price


def test_a_mix_is_priced_by_hand(run, priced):
    shared = read_plan(run).result.pattern.count("S")
    document = priced("--lengths", "1000:3,9000:1", "--output-tokens", 100, "--batch", 8)
    for name, dropped in (("all_full", 0), ("plan", shared)):
        first = 0.75 * prefill_seconds(1000, dropped) + 0.25 * prefill_seconds(9000, dropped)
        step = 0.75 * step_seconds(1050.5, 8, dropped) + 0.25 * step_seconds(9050.5, 8, dropped)
        price = document[name]
        assert price["first_token"] == pytest.approx(first, rel=1e-9)
        assert price["output_token"] == pytest.approx(step, rel=1e-9)
        assert price["tokens_a_second"] == pytest.approx(100 / (first + 100 * step / 8), rel=1e-9)
    assert document["plan"]["basis"] == "fitted"
    assert document["prefill"]["pays_from"] == document["decode"]["pays_from"] == 0.0


def test_measured_lengths_are_told_from_fitted_and_from_those_beyond(priced, run_cli, run):
    assert priced("--lengths", "1000")["prefill"]["measured"] == list(CONTEXTS)
    decode_file(run / "plan.json").unlink()
    assert priced("--lengths", "1000:1,4000:1")["plan"]["basis"] == "measured"
    assert priced("--lengths", "2000")["plan"]["basis"] == "fitted"
    beyond = priced("--lengths", "64k")
    assert beyond["plan"]["basis"] == "extrapolated"
    assert "prefill: timed from 1,000 to 16,000 tokens; what lies beyond is extrapolated" in beyond["remarks"]
    assert beyond["plan"]["tokens_a_second"] is None, "output tokens were not timed"
    assert any("--decode --lengths 65536" in remark for remark in beyond["remarks"])


def test_budgets_between_are_modelled_by_their_shared_layers(priced, run):
    budgets = {price["kept"]: price for price in priced("--lengths", "1000", "--output-tokens", 1)["budgets"]}
    assert sorted(budgets) == list(range(1, 9))
    for kept, price in budgets.items():
        assert price["first_token"] == pytest.approx(prefill_seconds(1000, 8 - kept), rel=1e-6)
    assert budgets[2]["basis"] == "modelled"
    assert budgets[8]["increase"] == 0


def test_the_cheapest_is_the_sparsest_within_the_limit(priced, run):
    plan = read_plan(run)
    everything = priced("--lengths", "4000", "--max-delta", 1000)["cheapest"]
    assert everything["kept"] == 1, "less is cheaper, and all is within the limit"
    high = {step.kept: step.high for step in plan.search.steps}
    limit = sorted(high.values())[3]
    cheapest = priced("--lengths", "4000", "--max-delta", max(limit, 0))["cheapest"]
    passing = [kept for kept, end in high.items() if end <= max(limit, 0)]
    assert cheapest["kept"] == min(passing, default=8)


def test_two_gpus_are_two(run, priced):
    one = priced("--lengths", "4000")["plan"]["tokens_a_second"]
    write_times(run, read_plan(run).result.pattern, device="2 x cuda: X")
    document = priced("--lengths", "4000")
    assert document["gpus"] == 2
    assert document["plan"]["tokens_a_second"] == pytest.approx(one / 2)


def test_the_table_says_what_it_comes_from(run, run_cli):
    code, out, err = run_cli("price", run, "--lengths", "1k:70,8k:30", "--max-delta", 1000)
    assert code == 0, err
    for words in ("70% of 1,024", "this plan", "cheapest", "sharing pays", "modelled", "no request waits"):
        assert words in out


def test_times_are_named_where_there_are_none(run, run_cli):
    for name in ("bench.json", "bench-decode.json"):
        (run / name).unlink()
    code, out, err = run_cli("price", run, "--lengths", "1k,32k")
    assert (code, out) == (2, "")
    assert f"indexcache bench {run / 'plan.json'} --context 1024,32768" in err
    assert len(err.strip().splitlines()) == 1
    write_times(run, "F" * 8)
    assert "is of another pattern" in run_cli("price", run, "--lengths", "1k")[2]
    assert read_decodes(run / "bench-decode.json", "F" * 8) is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--lengths was not given"),
        (["--lengths", "8k:70,x:30"], "--lengths is '8k:70,x:30' (give lengths"),
        (["--lengths", "8k:-1"], "--lengths is '8k:-1'"),
        (["--lengths", "8k:0"], "counts sum to 0"),
        (["--lengths", "8k:nan"], "--lengths is '8k:nan'"),
        (["--lengths", "nothing.csv"], "'nothing.csv', which is no mix of lengths and no file"),
        (["--lengths", "8k", "--batch", "3"], "a batch of 3 was not measured, but 1, 8 (run bench --decode"),
        (["--lengths", "8k", "--max-delta", "-1"], "max-delta"),
        (["--lengths", "8k", "--output-tokens", "0"], "--output-tokens"),
    ],
)
def test_wrong_options_give_one_line(run, run_cli, options, said):
    code, out, err = run_cli("price", run, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_histogram_is_read_with_and_without_a_header(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("\ufefflength;count;output tokens\n8k; 30;10\n\n1024;10\n2048;0;5\n", "utf-8")
    requests = requests_of(str(path), 256)
    assert [(request.length, request.share, request.output) for request in requests] == [
        (8192, 0.75, 10),
        (1024, 0.25, 256),
    ]
    path.write_text("8192,1\n")
    assert [request.length for request in requests_of(str(path), 1)] == [8192]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("length,count\n8k,1\nlong,2\n", "line 3: 'long' is no length in tokens"),
        ("8k,1\n8k,-2\n", "line 2: '-2' is no number of requests"),
        ("8k,1\n8k,1,2,3\n", "line 2: '8k,1,2,3' has 4 columns"),
        ("8k\n", "line 1: '8k' has 1 columns"),
        ("8k,1,0\n", "line 1: '0' is no number of output tokens"),
        ("8k,1,x\n", "line 1: 'x' is no number of output tokens"),
        ("99999999999999999999,1\n", "is no length in tokens"),
        ("length,count\n", "has no line with a length"),
        ("", "has no line with a length"),
        (b"\xff\xfe8k,1", "is no text in UTF-8"),
        ("8k,1\n" * 100_001, "has more than 100,000 lines"),
        ("8k,\x1b[31m\n", "is no number of requests"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, said):
    path = tmp_path / "lengths.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingError) as error:
        requests_of(str(path), 256)
    assert said in error.value.line()
    assert "\x1b" not in error.value.line()
