"""check tells which pattern a server runs, asks engines in their manners, and says in a line why it cannot."""

import json
import shutil

import pytest
from pattern_servers import (
    Dialect,
    LlamaCppPython,
    LlamaServer,
    LMDeploy,
    MlxVlm,
    Raw,
    Sampled,
    SGLang,
    Strict,
    made_up,
    made_up_fingerprint,
    serving,
)

from indexcache.search.fingerprint.document import Fingerprint, read_fingerprint, write_fingerprint
from indexcache.search.plan.file import read_plan
from indexcache.system.web import site


@pytest.fixture(scope="module")
def planned(searched, tmp_path_factory):
    """A plan, and a fingerprint of made-up predictions beside it."""
    path = tmp_path_factory.mktemp("planned") / "plan.json"
    shutil.copy(searched / "plan.json", path)
    write_fingerprint(path.with_name("fingerprint.json"), made_up_fingerprint(read_plan(path)))
    return path


@pytest.fixture(scope="module")
def letters(planned):
    return read_plan(planned).result.layer_pattern


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(site, "_PAUSE", 0.0)
    monkeypatch.delenv("INDEXCACHE_API_KEY", raising=False)


@pytest.fixture
def check(planned, run_cli):
    """Checks a server; exit code and the JSON document."""

    def run(dialect, *options):
        with serving(dialect) as url:
            code, out, err = run_cli("check", planned, "--url", url, "--json", *options)
        assert "Traceback" not in err
        return code, json.loads(out)

    return run


@pytest.mark.parametrize(
    "dialect", [Dialect, LlamaCppPython, LlamaServer, Strict, SGLang, LMDeploy, MlxVlm, Sampled]
)
def test_every_engine_is_asked_in_its_manner(dialect, check, letters):
    code, told = check(dialect(made_up(letters, noise=0.005)))
    assert (code, told["verdict"], told["passed"]) == (0, "plan", True)
    code, told = check(dialect(made_up("F" * len(letters), noise=0.005)))
    assert (code, told["verdict"], told["pattern"]) == (1, "other", "all full")


def test_other_patterns_and_other_arithmetic_are_told(check, letters):
    shifted = "F" + letters[:-1]
    code, told = check(Dialect(made_up(shifted, noise=0.005)))
    assert (code, told["pattern"]) == (1, "shifted by one layer")
    code, told = check(Dialect(made_up(letters, interleaved=False)))
    assert code == 1
    assert told["verdict"] in ("none", "unsure"), "a rope that is laid out otherwise is not the plan's"


def test_the_evidence_is_told(check, letters):
    dialect = Dialect(made_up("F" * len(letters), noise=0.005))
    _, told = check(dialect)
    assert told["engine"] == "vllm"
    assert told["engine_version"] == "0.33.0"
    assert "index_topk_pattern from --hf-overrides" in told["advice"]
    assert "--to vllm" in told["advice"]
    errors = {pattern["name"]: pattern["mean_error"] for pattern in told["patterns"]}
    assert errors["all full"] < 0.02 < errors["plan"]
    completions = [sent for path, sent, _ in dialect.asked if path == "/v1/completions"]
    assert told["requests"] == len(completions) <= 200
    assert {sent["max_tokens"] for sent in completions} == {1}
    assert "prompt_logprobs" not in completions[0]


def test_people_are_told_in_a_table(planned, letters, run_cli):
    with serving(Dialect(made_up(letters, noise=0.005))) as url:
        code, out, err = run_cli("check", planned, "--url", url)
    assert code == 0
    assert "acme/model, vLLM 0.33.0" in out
    assert "the server runs the plan" in out
    assert "error" not in err


@pytest.mark.parametrize(
    ("hidden", "code", "said"),
    [
        ("uniform", 0, "the server runs the plan, or uniform, which no prefix tells from it"),
        ("all full", 1, "not sure: no prefix of the fingerprint tells the plan from all full"),
    ],
)
def test_what_no_prefix_tells_from_the_plan_is_said(planned, letters, run_cli, tmp_path, hidden, code, said):
    path, made = tmp_path / "plan.json", read_fingerprint(planned.with_name("fingerprint.json"))
    number = next(number for number, pattern in enumerate(made.patterns) if pattern.name == hidden)
    document = json.loads(made.as_json())
    document["alike"] = [document["patterns"].pop(number)]
    for prefix in document["prefixes"]:
        for candidate in prefix["candidates"]:
            candidate["logprobs"].pop(number)
    document.pop("checksum")
    shutil.copy(planned, path)
    write_fingerprint(path.with_name("fingerprint.json"), Fingerprint.model_validate_json(json.dumps(document)))
    with serving(Dialect(made_up(letters, noise=0.005))) as url:
        given, out, _ = run_cli("check", path, "--url", url, "--json")
    assert (given, json.loads(out)["passed"], json.loads(out)["sentence"]) == (code, code == 0, said)


def test_an_engine_that_is_named_wins(check, letters):
    _, told = check(Dialect(made_up("F" * len(letters), noise=0.005)), "--engine", "atom")
    assert told["engine"] == "atom"
    assert "use_index_cache and index_topk_pattern and indexer_types" in told["advice"]


def test_prompts_are_sent_as_texts_only_where_ids_are_refused(check, letters):
    for dialect, kinds in ((Dialect, {list}), (LlamaCppPython, {str})):
        server = dialect(made_up(letters, noise=0.005))
        _, told = check(server)
        answered = [sent["prompt"] for path, sent, _ in server.asked if path == "/v1/completions"][2:]
        assert {type(prompt) for prompt in answered} == kinds
        assert told["asked_by"] == ("token ids" if kinds == {list} else "text")


def test_log_probabilities_within_a_prompt_are_asked_for_on_request(check, letters, planned):
    dialect = Dialect(made_up(letters, noise=0.005))
    code, _ = check(dialect, "--prompt-logprobs")
    sent = next(sent for path, sent, _ in dialect.asked if path == "/v1/completions")
    assert sent["prompt_logprobs"] == 5
    assert code == 0


def test_the_budget_is_kept(check, letters):
    dialect = Dialect(made_up(letters, noise=0.005))
    code, told = check(dialect, "--max-requests", "2")
    assert (code, told["verdict"]) == (1, "unsure")
    assert sum(path == "/v1/completions" for path, _, _ in dialect.asked) == 2


class Chat(MlxVlm):
    adds = 9


class WithoutLogprobs(Dialect):
    def listed(self, top, logprobs, sent):
        return None


class Elsewhere(Dialect):
    def get(self, path):
        return (404, {}) if path == "/v1/models" else (200, {"data": []}) if path == "/v1/v1/models" else (404, {})


class Several(Dialect):
    def models(self):
        return 200, {"data": [{"id": name, "owned_by": "vllm"} for name in ("acme/one", "acme/two")]}


class OtherTokenizer(Dialect):
    def post(self, path, sent):
        return (200, {"tokens": [1, 2, 3]}) if path == "/tokenize" else super().post(path, sent)


class Counting(LlamaCppPython):
    def complete(self, sent):
        status, answer = super().complete(sent)
        if status == 200:
            answer["usage"]["prompt_tokens"] += 1
        return status, answer


class Short(Dialect):
    context = 8


class Choosing(Sampled):
    def complete(self, sent):
        return super().complete(sent | {"temperature": 0})


class Locked(Dialect):
    def get(self, path):
        return 401, {"error": {"message": "Incorrect API key provided: hunter2hunter2"}}


class TooLong(Dialect):
    def complete(self, sent):
        return 400, {"error": {"message": "This model's maximum context length is 8 tokens."}}


@pytest.mark.parametrize(
    ("dialect", "said"),
    [
        (Chat, "has chat completions only, whose template"),
        (WithoutLogprobs, "gives no log-probabilities"),
        (Elsewhere, "404"),
        (Several, "serves several models: acme/one, acme/two (name one with --model)"),
        (OtherTokenizer, "has another tokenizer"),
        (Counting, "it counts 12 tokens in a prompt of 11"),
        (Short, "takes 8 tokens, and the shortest prefix"),
        (Choosing, "of the token that it chose"),
        (Locked, "set INDEXCACHE_API_KEY to its key"),
        (TooLong, "start it with a longer context"),
    ],
)
def test_why_a_server_cannot_be_asked_is_one_line(dialect, said, planned, letters, run_cli):
    with serving(dialect(made_up(letters))) as url:
        code, out, err = run_cli("check", planned, "--url", url, "--json")
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert json.loads(out)["error"]["exit_code"] == 2


def test_another_model_is_refused_by_its_name(check, letters):
    code, told = check(Dialect(made_up(letters)), "--model", "acme/other")
    assert code == 2
    assert "does not serve 'acme/other', but acme/model" in told["error"]["message"]
    code, told = check(Several(made_up(letters, noise=0.005)), "--model", "acme/two")
    assert (code, told["model"]) == (0, "acme/two")


def test_an_address_without_v1_is_mended(planned, letters, run_cli):
    with serving(Dialect(made_up(letters))) as url:
        code, _, err = run_cli("check", planned, "--url", url.removesuffix("/v1"))
    assert code == 2
    assert f"but one at {url} (give that address)" in err


def test_the_key_is_sent_and_never_shown(check, letters, monkeypatch):
    monkeypatch.setenv("INDEXCACHE_API_KEY", "hunter2hunter2")
    dialect = Dialect(made_up(letters, noise=0.005))
    assert check(dialect)[0] == 0
    assert {headers.get("authorization") for _, _, headers in dialect.asked} == {"Bearer hunter2hunter2"}
    _, told = check(Locked(made_up(letters)))
    assert "hunter2" not in json.dumps(told)
    assert "see that INDEXCACHE_API_KEY holds its key" in told["error"]["hint"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "there is no fingerprint"),
        (lambda path: path.write_text("{"), "is not a fingerprint that can be read"),
        (lambda path: path.write_text(path.read_text().replace('"made-up"', '"other"')), "checksum"),
    ],
)
def test_a_fingerprint_is_needed(change, said, planned, run_cli, tmp_path):
    for name in ("plan.json", "fingerprint.json"):
        shutil.copy(planned.with_name(name), tmp_path / name)
    change(tmp_path / "fingerprint.json")
    code, _, err = run_cli("check", tmp_path, "--url", "http://127.0.0.1:9/v1")
    assert code == 2
    assert said in err
    assert "eval PLAN --fingerprint" in err


def test_a_fingerprint_of_another_plan_is_refused(planned, run_cli, tmp_path):
    shutil.copy(planned.with_name("fingerprint.json"), tmp_path / "fingerprint.json")
    run_cli("cut", planned, "--keep", "0.75", "--out", tmp_path / "plan.json")
    code, _, err = run_cli("check", tmp_path, "--url", "http://127.0.0.1:9/v1")
    assert code == 2
    assert "is of another plan" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--url was not given"),
        (["--url", "localhost:8000/v1"], "no address of a web server"),
        (["--url", "http://me:secret@localhost/v1"], "which would be shown"),
        (["--url", "http://[::1/v1"], "no address"),
        (["--url", "http://127.0.0.1:1/v1", "--engine", "vlm"], "--engine: 'vlm' is not known"),
        (["--url", "http://127.0.0.1:1/v1"], "cannot be reached"),
        (["--url", "http://127.0.0.1:1/v1", "--timeout", "0"], "--timeout"),
    ],
)
def test_wrong_options_are_one_line(options, said, planned, run_cli):
    code, _, err = run_cli("check", planned, *options)
    assert code == 2
    assert said in err.splitlines()[-1]
    assert "secret" not in err


def hostile(random, good):
    """An answer that is wrong somewhere: status, headers and body."""
    status, headers, body = 200, {"Content-Type": "application/json"}, json.dumps(good).encode()
    kind = random.choice(("cut", "value", "value", "value", "status", "bytes", "page", "deep", "headers", "large"))
    if kind == "cut":
        body = body[: random.randrange(len(body))]
    elif kind == "value":
        body = json.dumps(damaged(random, good)).encode()
    elif kind == "status":
        status = random.choice((400, 401, 403, 404, 405, 413, 422, 429, 500, 501, 502, 503, 504, 302, 307, 204))
        headers |= {"Retry-After": random.choice(("0", "never", "nan", "1e999", "-5"))}
        headers |= {"Location": random.choice(("http://127.0.0.2:9/", "/v1/models", "//evil", "http://[", ""))}
        body = random.choice((b"", body, b'{"error": {"message": "no\\u001b[2J"}}', b"[[[[]]]]", b"\xff\xfe"))
        body = b"" if status == 204 else body
    elif kind == "bytes":
        body = random.randbytes(random.randrange(300))
    elif kind == "page":
        body, headers = b"<!doctype html><title>Sign in</title>", {"Content-Type": "text/html"}
    elif kind == "deep":
        body = random.choice((b"[" * 100_000, b'{"choices":' * 50_000, b'{"data": ' + b"9" * 5000 + b"}"))
    elif kind == "headers":
        headers |= random.choice(
            (
                {"Content-Length": len(body) + 50, "Connection": "close"},
                {"Content-Length": "many"},
                {"Content-Encoding": "gzip"},
                {"Transfer-Encoding": "chunked"},
            )
        )
    else:
        body = b'{"choices": "' + b"x" * (5 << 20) + b'"}'
    return status, headers, body


def damaged(random, document):
    """``document`` with one of its values replaced by what does not belong there."""
    document = json.loads(json.dumps(document))
    places = []

    def visit(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                visit(value[key])

    visit(document)
    holder, key = random.choice(places)
    holder[key] = random.choice(
        (
            None,
            True,
            -1,
            10**400,
            1e308,
            0.5,
            float("nan"),
            float("inf"),
            -float("inf"),
            "",
            "\x00\x1b[2J",
            [],
            {},
            [[]],
        )
    )
    return document


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [3, pytest.param(25, marks=pytest.mark.torture)])
def test_hostile_answers_are_one_line_each(seed, count, planned, letters, run_cli):
    import random

    dice, good = random.Random(seed * 1000 + count), Dialect(made_up(letters, noise=0.005))
    for _ in range(count):
        wrong_path, wrong_from = (
            dice.choice(("/v1/models", "/v1/completions", "/version", "/tokenize")),
            dice.randrange(3),
        )
        asked = []

        def respond(method, path, sent, wrong_path=wrong_path, wrong_from=wrong_from, asked=asked):
            status, document = good.get(path) if sent is None else good.post(path, sent)
            asked.append(path)
            if path == wrong_path and asked.count(path) > wrong_from:
                return hostile(dice, document)
            return status, {"Content-Type": "application/json"}, json.dumps(document).encode()

        with serving(Raw(respond)) as url:
            code, out, err = run_cli("check", planned, "--url", url, "--json", "--timeout", "5")
        told = json.loads(out)
        assert code in (0, 1, 2)
        assert "Traceback" not in err
        assert "unexpected" not in err, err
        assert err.isascii() or "\x1b" not in err
        assert sum(line.startswith("error: ") for line in err.splitlines()) == (code != 0), err
        assert ("error" in told) == (code == 2)
