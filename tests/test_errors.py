"""The exception tree: exit codes, one line each, and that the drawn tree is the real one."""

import re

import pytest

from indexcache import errors


def subclasses(kind):
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_only_a_failed_check_exits_with_1():
    codes = {kind.__name__: kind.exit_code for kind in subclasses(errors.IndexcacheError)}
    assert codes.pop("GateError") == 1
    assert codes.pop("InterruptedRunError") == 130
    assert codes.pop("StoppedRunError") == 75
    assert codes.pop("LostProcessError") == 75
    assert set(codes.values()) == {2}


def test_an_error_is_one_line_whatever_it_quotes():
    error = errors.DatasetError("first\nsecond\tthird", hint="do this")
    assert error.line() == "first second third (do this)"


def test_the_drawn_tree_names_every_class():
    drawn = set(re.findall(r"(\w+Error)\b", errors.__doc__))
    assert drawn == {"IndexcacheError", *(kind.__name__ for kind in subclasses(errors.IndexcacheError))}


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "ValueError"), ("a\nb", "a"), ("one of:\n  these", "one of: these"), ("\n\n  late", "late")],
)
def test_first_line_says_something(text, said):
    assert errors.first_line(ValueError(text)) == said
