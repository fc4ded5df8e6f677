"""A web server is asked within bounds: time, bytes, repeats, and no other host; and the key stays unseen."""

import threading
import time

import pytest
from pattern_servers import Raw, serving
from random_models import ROOT

from indexcache.errors import ServerError
from indexcache.system.web.answer import Answer
from indexcache.system.web.site import LARGEST_ANSWER, Site

CERTIFICATE = ROOT / "tests" / "assets" / "localhost.pem"
KEY = "sk-0123456789"


def answering(*answers):
    """A server that gives these answers, the last of them from then on."""
    left = list(answers)
    return Raw(lambda *_: left.pop(0) if len(left) > 1 else left[0])


def test_an_answer_is_read():
    with serving(answering((200, {"X-Name": "v"}, b'{"a": [1]}'))) as url:
        answer = Site(url).get("models")
    assert (answer.url, answer.status, answer.document()) == (f"{url}/models", 200, {"a": [1]})
    assert answer.headers["x-name"] == "v"


def test_paths_are_below_the_address_or_at_the_root():
    site = Site("http://host:8000/api/v1/?token=1#x")
    assert site.at("models") == site.at("/models") == "http://host:8000/api/v1/models"
    assert site.at("//version") == "http://host:8000/version"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again_a_few_times(status):
    pauses = []
    dialect = answering((status, {"Retry-After": "3"}, b""), (status, {}, b""), (200, {}, b"{}"))
    with serving(dialect) as url:
        assert Site(url, pause=pauses.append).get("x").status == 200
    assert pauses == [3, 1]
    pauses.clear()
    dialect = answering((status, {"Retry-After": "86400"}, b"busy"))
    with serving(dialect) as url:
        answer = Site(url, pause=pauses.append).get("x")
    assert answer.reason() == f"HTTP {status}: busy"
    assert pauses == [20, 20, 20, 20]
    assert len(dialect.asked) == 5


@pytest.mark.parametrize("after", ["nan", "1e999", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_pause_that_is_none_is_our_own(after):
    pauses = []
    with serving(answering((503, {"Retry-After": after}, b""), (200, {}, b"{}"))) as url:
        Site(url, pause=pauses.append).get("x")
    assert pauses == [0.5]


def test_more_bytes_than_are_read_are_refused():
    with (
        serving(answering((200, {}, b"x" * (LARGEST_ANSWER + 1)))) as url,
        pytest.raises(ServerError, match="4 MiB"),
    ):
        Site(url).get("x")


def test_compressed_answers_are_refused():
    with serving(answering((200, {"Content-Encoding": "gzip"}, b"x"))) as url:
        site = Site(url)
        with pytest.raises(ServerError, match="compressed"):
            site.get("x")


def test_a_server_that_drips_is_left_in_time():
    """Each byte comes in time, and all of them never."""
    left = threading.Event()

    def drips():
        while not left.wait(0.05):
            yield b" "

    with serving(Raw(lambda *_: (200, {"Connection": "close"}, drips()))) as url:
        begin = time.monotonic()
        with pytest.raises(ServerError, match=r"did not answer within 0.3 s"):
            Site(url, seconds=0.3).get("x")
        left.set()
    assert time.monotonic() - begin < 5


def test_a_redirect_stays_on_the_server():
    def respond(method, path, sent):
        return (307, {"Location": "/v1/new"}, b"") if path.endswith("old") else (200, {}, b'{"moved": true}')

    with serving(Raw(respond)) as url:
        assert Site(url).get("old").document() == {"moved": True}
        assert Site(url).post("old", {}).document() == {"moved": True}


def test_a_redirect_elsewhere_is_refused_and_not_followed():
    other = answering((200, {}, b"{}"))
    with serving(other) as elsewhere:
        moved = answering((307, {"Location": f"{elsewhere}/x?k={KEY}"}, b""))
        with serving(moved) as url, pytest.raises(ServerError, match="redirects to another server") as caught:
            Site(url, KEY).get("x")
    assert other.asked == []
    assert KEY not in caught.value.line()


@pytest.mark.parametrize("location", ["http://[", "", "ftp://x/", "//evil.example/x", "https:"])
def test_a_redirect_to_nowhere_is_one_line(location):
    with (
        serving(answering((302, {"Location": location}, b""))) as url,
        pytest.raises(ServerError, match="redirects"),
    ):
        Site(url).get("x")


def test_a_post_is_not_made_a_get():
    with (
        serving(answering((302, {"Location": "/v1/x"}, b""))) as url,
        pytest.raises(ServerError, match="redirects"),
    ):
        Site(url).post("x", {})


def test_a_key_is_sent_and_not_shown():
    dialect = answering((200, {}, f'{{"detail": "you are {KEY}"}}'.encode()), (401, {}, f"no {KEY}".encode()))
    with serving(dialect) as url:
        site = Site(url, KEY, "THE_KEY")
        assert site.get("x").document() == {"detail": "you are ***"}
        with pytest.raises(ServerError, match="refuses to answer") as caught:
            site.get("x")
    assert KEY not in caught.value.line()
    assert "see that THE_KEY holds its key" in caught.value.hint
    assert {fields["authorization"] for _, _, fields in dialect.asked} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("key", ["a\nb", " a", "schlüssel", "a\x00"])
def test_what_no_key_can_be_is_refused_unseen(key):
    with pytest.raises(ServerError, match="THE_KEY holds what no key can") as caught:
        Site("http://host/v1", key, "THE_KEY")
    assert key not in caught.value.line()


def test_a_key_is_open_where_others_listen():
    assert Site("http://host/v1", KEY).sends_key_openly
    for url, key in (("http://host/v1", None), ("https://host/v1", KEY), ("http://127.0.0.1/v1", KEY)):
        assert not Site(url, key).sends_key_openly


def test_certificates_are_checked(monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serving(answering((200, {}, b"{}")), CERTIFICATE) as url:
        with pytest.raises(ServerError, match="its certificate is not trusted") as caught:
            Site(url).get("x")
        assert "SSL_CERT_FILE" in caught.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert Site(url).get("x").status == 200
        with pytest.raises(ServerError, match=r"did not answer as HTTP|cannot be reached"):
            Site(url.replace("https", "http")).get("x")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(ServerError, match="SSL_CERT_FILE, as the environment has it, cannot be used"):
        Site("https://host/v1")


def test_this_machine_is_reached_without_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with serving(answering((200, {}, b"{}"))) as url:
        assert Site(url).get("x").status == 200


def test_others_are_reached_through_the_environments_proxy(monkeypatch):
    proxy = answering((200, {}, b"{}"))
    with serving(proxy) as url:
        monkeypatch.setenv("HTTP_PROXY", url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert Site("http://engine.invalid/v1").get("x").status == 200
    assert proxy.asked[0][0] == "http://engine.invalid/v1/x"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no such\\nmodel"}}', "HTTP 400: no such model"),
        (b'{"detail": [{"msg": "wrong"}]}', "HTTP 400: wrong"),
        (b'{"object": "error", "message": "too long"}', "HTTP 400: too long"),
        (b"<html>gateway</html>", "HTTP 400"),
        (b"plain \x1b[2J words", "HTTP 400: plain \\u001b[2J words"),
        (b"[[[[[[[[]]]]]]]]", "HTTP 400"),
        (b"", "HTTP 400"),
    ],
)
def test_what_a_server_says_was_wrong_is_one_line(body, said):
    assert Answer("http://host", 400, {}, body).reason() == said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!doctype html>", "a web page"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b'{"a"', "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1]", "no object"),
    ],
)
def test_what_is_no_document_is_one_line(body, said):
    with pytest.raises(ServerError, match=said):
        Answer("http://host", 200, {}, body).document()
