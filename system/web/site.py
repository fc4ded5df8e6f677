"""A web server below one address, asked by one request at a time: how long, how much, how often, and where to."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx2

from ...errors import ServerError
from .answer import Answer, shortened

LARGEST_ANSWER: Final = 4 << 20
"""Bytes of an answer that are read."""
# A server that is busy or starting is asked again so many times, after so many seconds, doubled each time.
_REPEATS, _PAUSE, _LONGEST_PAUSE = 4, 0.5, 20.0
_BUSY = (429, 502, 503, 504)
_REDIRECTS = 3
_KEEP_METHOD = (307, 308)
_MOVED = (301, 302, 303, *_KEEP_METHOD)
_LONGEST_URL, _SHORTEST_SECRET = 2000, 8


class Site:
    """A web server.

    Args:
        url: the address below which paths are asked for, http or https.
        key: sent as a bearer token to this address alone, and never shown; None for none.
        key_name: where the key comes from, for errors.
        seconds: that one answer may take, from the first look-up of its name to its last byte.
        pause: waits so many seconds before a busy server is asked again.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        key_name: str = "",
        seconds: float = 60.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self._origin = _checked_url(url)
        self._key, self._key_name, self._seconds, self._pause = key, key_name, seconds, pause
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
            raise ServerError(f"{key_name} holds what no key can: blanks, line ends or other than ASCII")
        headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "indexcache"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._client = _client(self.url, headers, seconds)

    @property
    def sends_key_openly(self) -> bool:
        """Whether a key crosses a network unencrypted."""
        return self._key is not None and self.url.scheme == "http" and not _is_here(self.url.host)

    @property
    def root(self) -> str:
        """The server's own address, without any path."""
        return str(self.url.copy_with(raw_path=b"/")).rstrip("/")

    def at(self, path: str) -> str:
        """The address of ``path`` below this one; of the server's own root where it begins with //."""
        base = self.root if path.startswith("//") else str(self.url).rstrip("/")
        return base + "/" + path.lstrip("/")

    def get(self, path: str) -> Answer:
        """Asks for ``path``.

        Raises:
            ServerError: see ``ask``.
        """
        return self.ask("GET", self.at(path), None)

    def post(self, path: str, document: Mapping[str, Any]) -> Answer:
        """Sends ``document`` as JSON to ``path``.

        Raises:
            ServerError: see ``ask``.
        """
        return self.ask("POST", self.at(path), json.dumps(document, allow_nan=False).encode())

    def ask(self, method: str, address: str, content: bytes | None) -> Answer:
        """The answer, whatever its status, after a few repeats where the server is busy.

        Raises:
            ServerError: unreachable, too slow, too much, a redirect to another host, or a key refused.
        """
        for repeat in range(_REPEATS + 1):
            last = repeat == _REPEATS
            try:
                answer = self._followed(method, address, content)
            except httpx2.RemoteProtocolError as error:
                # A connection that was kept may have been closed just then: once more on a new one.
                if repeat:
                    raise self._unanswered(address, error) from None
                continue
            if answer.status not in _BUSY or last:
                break
            self._pause(_pause_of(answer, repeat))
        if answer.status in (401, 403):
            raise self._refused(answer)
        return answer

    def _refused(self, answer: Answer) -> ServerError:
        key = self._key_name or "the key"
        how = f"see that {key} holds its key" if self._key else f"set {key} to its key"
        return ServerError(f"{answer.url} refuses to answer: {answer.reason()}", hint=how)

    def _followed(self, method: str, address: str, content: bytes | None) -> Answer:
        """The answer behind redirects, which may not leave this server."""
        for _ in range(_REDIRECTS + 1):
            answer = self._exchanged(method, address, content)
            if answer.status not in _MOVED:
                return answer
            target = self._target(address, answer)
            if method != "GET" and answer.status not in _KEEP_METHOD:
                raise ServerError(f"{address} redirects to {target}", hint="give that server's address")
            address = target
        raise ServerError(f"{address} redirects again and again")

    def _target(self, address: str, answer: Answer) -> str:
        try:
            target = httpx2.URL(address).join(answer.headers.get("location", ""))
        except httpx2.InvalidURL:
            raise ServerError(f"{address} redirects to what is no address") from None
        shown = shortened(self._safe(str(target.copy_with(username=None, password=None, query=None))))
        if _origin(target) != self._origin or target.userinfo:
            raise ServerError(
                f"{address} redirects to another server, {shown}, which was not asked",
                hint="give that address if it is the one that you mean",
            )
        return str(target)

    def _exchanged(self, method: str, address: str, content: bytes | None) -> Answer:
        """One request and its answer, waited for no longer than is allowed, whatever the server holds back.

        A read's own timeout begins anew with each byte, and looking up a name has none: so another thread asks.
        """
        result: list[Answer | Exception] = []

        def job() -> None:
            try:
                result.append(self._read(method, address, content))
            except Exception as error:
                result.append(error)

        worker = threading.Thread(target=job, daemon=True)
        worker.start()
        worker.join(self._seconds)
        if not result:
            raise self._slow(address)
        outcome = result[0]
        if isinstance(outcome, Answer):
            return outcome
        if isinstance(outcome, httpx2.TimeoutException):
            raise self._slow(address)
        if isinstance(outcome, ServerError | httpx2.RemoteProtocolError):
            raise outcome
        raise self._unanswered(address, outcome)

    def _read(self, method: str, address: str, content: bytes | None) -> Answer:
        headers = {} if content is None else {"content-type": "application/json"}
        with self._client.stream(method, address, content=content, headers=headers) as response:
            if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
                raise ServerError(f"{address} answers compressed, which it was asked not to")
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if len(body) > LARGEST_ANSWER:
                    raise ServerError(f"{address} answers with more than {LARGEST_ANSWER >> 20} MiB")
        fields = {name.lower(): self._safe(value) for name, value in response.headers.items()}
        # A short key may be a word of the answer.
        if self._key is not None and len(self._key) >= _SHORTEST_SECRET:
            body = body.replace(self._key.encode(), b"***")
        return Answer(address, response.status_code, fields, bytes(body))

    def _slow(self, address: str) -> ServerError:
        return ServerError(
            f"{address} did not answer within {self._seconds:g} s",
            hint="--timeout allows more seconds; a server that is starting takes its time",
        )

    def _unanswered(self, address: str, error: Exception) -> ServerError:
        """What kept the server from answering, in words."""
        said = shortened(self._safe(str(error))) or type(error).__name__
        if "CERTIFICATE" in said.upper() or "certificate" in said:
            return ServerError(
                f"{address}: its certificate is not trusted: {said}",
                hint="SSL_CERT_FILE names a file of certificates to trust; they are always checked",
            )
        if isinstance(error, httpx2.ProxyError):
            return ServerError(f"{address}: the proxy fails that the environment names: {said}")
        if isinstance(error, httpx2.ConnectError):
            hint = "see that the server runs, and that host and port are right"
            return ServerError(f"{address} cannot be reached: {said}", hint=hint)
        return ServerError(f"{address} did not answer as HTTP has it: {said}", hint="see that --url is right")

    def _safe(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "***")


def _checked_url(text: str) -> tuple[httpx2.URL, tuple[str, str, int | None]]:
    """An address of a web server, and its origin.

    Raises:
        ServerError: it is none, or holds a name and password, which would be shown.
    """
    hint = "give it as http://host:port/v1"
    try:
        if len(text) > _LONGEST_URL:
            raise httpx2.InvalidURL("too long")
        url = httpx2.URL(text.strip())
    except (httpx2.InvalidURL, ValueError) as error:  # ValueError: a name that IDNA does not know
        raise ServerError(f"--url is no address: {shortened(str(error))}", hint=hint) from None
    if url.userinfo:
        raise ServerError("--url holds a user and a password, which would be shown", hint="leave them out")
    if url.scheme not in ("http", "https") or not url.host:
        raise ServerError(f"--url {shortened(text)!r} is no address of a web server", hint=hint)
    return url.copy_with(query=None, fragment=None), _origin(url)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _is_here(host: str) -> bool:
    """Whether a host is this machine, which no proxy can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _client(url: httpx2.URL, headers: Mapping[str, str], seconds: float) -> httpx2.Client:
    """A client that checks certificates, and goes through the environment's proxies unless the host is this one.

    Raises:
        ServerError: a file of certificates or a proxy that cannot be used.
    """
    proxied = not _is_here(url.host)
    try:
        # Reading certificates takes a tenth of a second: where nothing comes encrypted, none is trusted.
        encrypted = proxied or url.scheme == "https"
        verify = httpx2.create_ssl_context() if encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return httpx2.Client(
            headers=headers,
            timeout=seconds,
            verify=verify,
            trust_env=proxied,
            follow_redirects=False,
        )
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors
        names = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "certificates or proxies"
        said = shortened(str(error))
        raise ServerError(f"{names}, as the environment has it, cannot be used: {said}") from None
    except ImportError as error:
        raise ServerError(
            f"the proxy that the environment names cannot be used: {shortened(str(error))}",
            hint="unset ALL_PROXY, or list the host in NO_PROXY",
        ) from None


def _pause_of(answer: Answer, repeat: int) -> float:
    """Seconds until a busy server is asked again: as it says, but never long."""
    try:
        asked = float(answer.headers.get("retry-after", ""))
    except ValueError:  # none, or a date
        asked = 0.0
    doubled = _PAUSE * float(2**repeat)
    return min(max(asked, doubled), _LONGEST_PAUSE) if math.isfinite(asked) else doubled
