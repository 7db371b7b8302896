"""Assertions that many test files share."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from timecycle.errors import InputError


@contextmanager
def raises_input_error(*parts: str, match: str | None = None) -> Iterator[pytest.ExceptionInfo[InputError]]:
    """Expect an InputError: one line of moderate length that contains every part and matches a regular expression."""
    with pytest.raises(InputError, match=match) as error:
        yield error
    for part in parts:
        assert part in str(error.value)
    check_sentence(error.value)


def check_sentence(error: InputError) -> None:
    """Check that a message is a line of moderate length."""
    assert "\n" not in str(error)
    assert len(str(error)) < 700


@contextmanager
def may_be_refused() -> Iterator[None]:
    """Allow an InputError of one line."""
    try:
        yield
    except InputError as error:
        check_sentence(error)
