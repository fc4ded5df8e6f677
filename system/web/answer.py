"""What a web server answered: its status, its body as JSON, and what it says was wrong, safe to show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ServerError, one_line
from ..documents import parse_json

_LONGEST_QUOTE = 300
# Where servers of the OpenAI kind, FastAPI's and others say what was wrong.
_REASONS = ("message", "error", "detail", "msg", "object")


@dataclass(frozen=True)
class Answer:
    """A server's answer.

    Args:
        url: that was asked.
        status: of HTTP.
        headers: by their names in lower case.
        body: its bytes, as many as are read at most.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_page(self) -> bool:
        """Whether it is a web page, which no API answers with."""
        return "html" in self.headers.get("content-type", "") or self.body[:64].lstrip().startswith(b"<")

    def document(self) -> dict[str, Any]:
        """The JSON object in the body.

        Raises:
            ServerError: a web page, not JSON, or JSON that is no object.
        """
        if self.is_page:
            raise ServerError(f"{self.url} answers with a web page, not with JSON", hint="see where --url leads")
        try:
            document = parse_json(self.body.decode())
        except (ValueError, RecursionError) as error:  # not UTF-8 either
            reason = "nested too deep" if isinstance(error, RecursionError) else shortened(str(error))
            raise ServerError(f"{self.url} answers with JSON that cannot be read: {reason}") from None
        if not isinstance(document, dict):
            raise ServerError(f"{self.url} answers with JSON that is no object")
        return document

    def reason(self) -> str:
        """What the server says was wrong, on one line; its status where it says nothing that can be read."""
        said: Any
        try:
            said = parse_json(self.body.decode(errors="replace"))
        except (ValueError, RecursionError):
            said = "" if self.is_page else self.body.decode(errors="replace")
        said = _said(said)
        return f"HTTP {self.status}" + (f": {shortened(said)}" if said.strip() else "")


def _said(document: Any, depth: int = 0) -> str:
    """The words in an error's document, which servers lay out differently."""
    if isinstance(document, str):
        return document
    if isinstance(document, list) and document and depth < 4:
        return _said(document[0], depth + 1)
    if isinstance(document, dict) and depth < 4:
        for name in _REASONS:
            if said := _said(document.get(name), depth + 1):
                return said
    return ""


def shortened(text: str) -> str:
    """``text`` as one line of 300 characters at most."""
    line = re.sub(r"\s+", " ", text).strip()
    return one_line(line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}…")
