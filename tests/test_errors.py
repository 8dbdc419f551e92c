"""What a user is told who gave something that cannot be used."""

from __future__ import annotations

import pytest

from csd_nerf.errors import InputError, check, check_at_least, option


def test_of_an_option_it_is_said_that_it_cannot_be_used() -> None:
    check(True, option("max_minutes"), expected="a number above 0", got=3)
    with pytest.raises(InputError) as refused:
        check(False, option("max_minutes"), expected="a number above 0", got=-1.5)
    assert str(refused.value).splitlines() == [
        "--max-minutes cannot be used",
        "  expected: a number above 0",
        "  got:      -1.5",
        "  do this:  change it, or leave it out",
    ]


def test_a_problem_is_left_as_it_was_worded() -> None:
    with pytest.raises(InputError) as refused:
        check(False, "there are two", expected="one", got="both", hint="leave out one of them")
    assert refused.value.problem == "there are two" and refused.value.hint == "leave out one of them"


@pytest.mark.parametrize("value", (0, float("nan")))
def test_a_number_below_the_least_is_refused_and_none_is_not(value: float) -> None:
    check_at_least("size", None, 1)
    check_at_least("size", 1, 1)
    with pytest.raises(InputError, match=r"--size is too small\n +expected: at least 1"):
        check_at_least("size", value, 1)
