"""What errors say in one line."""

from __future__ import annotations

import pytest

from agent.errors import first_line


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (ValueError("two\nlines"), "two"),
        (ValueError("\n  late\n"), "late"),
        (ValueError(), "ValueError"),
        (TimeoutError(" "), "TimeoutError"),
        ("x" * 500, "x" * 200),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(told: object, line: str) -> None:
    assert first_line(told) == line
