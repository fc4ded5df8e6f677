"""Templates of the report, one environment for pages and pictures: all text is escaped, nothing may be missing."""

from __future__ import annotations

import html
import re
import textwrap
from functools import cache
from typing import Any
from urllib.parse import quote

from ....errors import one_line


@cache
def template(name: str, escape: bool = True) -> Any:
    """The template of that file name; ``escape`` for HTML and SVG."""
    return _environment(escape).get_template(name)


def source(name: str) -> str:
    """The text of a file among the templates, as it is."""
    text: str = _environment(True).loader.get_source(_environment(True), name)[0]
    return text


@cache
def _environment(escape: bool) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__.rpartition(".")[0]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = markdown_cell
    environment.filters["code"] = with_code
    environment.filters["target"] = quote
    environment.filters["fold"] = folded
    return environment


def markdown_cell(value: object) -> str:
    """``value`` on one line, with nothing that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", html.escape(one_line(str(value)), quote=False))


def folded(text: str, indent: int = 0) -> str:
    """``text`` in lines of at most 80 columns, as a job summary shows them; those after the first ``indent``ed."""
    return textwrap.fill(text, 80, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def with_code(text: str) -> str:
    """``text`` as HTML, with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def picture(file: str, alone: bool, /, **content: object) -> str:
    """An SVG element from the template ``file``; ``alone`` in a file of its own, which has its colours in it."""
    svg: str = template(file).render(alone=alone, **content)
    return "\n".join(line.strip() for line in svg.splitlines() if line.strip()) + "\n"
