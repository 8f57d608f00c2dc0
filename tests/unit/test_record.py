# SPDX-License-Identifier: Apache-2.0
"""Records do for their users what frozen dataclasses do."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest

from vdpa_net.record import Record, as_dict, replace


class Point(Record):
    kind: ClassVar[str] = "point"
    x: int
    y: int = 2

    @property
    def sum(self) -> int:
        return self.x + self.y


class Tagged(Record, kw_only=True):
    tag: str = ""


class Named(Tagged):
    name: str
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count {self.count}")


class Other(Record):
    x: int
    y: int = 2


def test_fields_are_given_by_position_by_name_or_by_default() -> None:
    assert (Point(1).x, Point(1).y, Point(1, 5).y, Point(y=4, x=3).sum) == (1, 2, 5, 7)
    assert Point.kind == Point(1).kind == "point"


def test_fields_of_a_base_come_first_and_may_be_for_names_only() -> None:
    named = Named("eth0", 3, tag="a")
    assert as_dict(named) == {"tag": "a", "name": "eth0", "count": 3}
    with pytest.raises(TypeError, match="takes 2 values by position, got 3"):
        Named("eth0", 3, "a")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named", "said"),
    [
        ((), {}, "x missing"),
        ((1, 2, 3), {}, "takes 2 values by position, got 3"),
        ((1,), {"x": 1}, "x is given twice"),
        ((1,), {"z": 1}, "z is no field"),
    ],
)
def test_wrong_arguments_are_named(values: tuple[int, ...], named: dict[str, int], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Point(*values, **named)


def test_a_record_does_not_change() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x"):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Point\.x"):
        del point.x
    with pytest.raises(AttributeError):
        point.other = 3  # type: ignore[attr-defined]
    assert not hasattr(point, "__dict__")


def test_records_are_equal_by_class_and_fields() -> None:
    assert Point(1) == Point(1, 2) != Point(1, 3)
    assert Point(1) != Other(1)
    assert len({Point(1), Point(1, 2), Other(1)}) == 2
    assert repr(Point(1)) == "Point(x=1, y=2)"


def test_what_is_replaced_is_checked_again() -> None:
    assert replace(Named("a"), count=2) == Named("a", 2)
    with pytest.raises(ValueError, match="count 0"):
        replace(Named("a"), count=0)


def test_records_can_be_copied_pickled_and_matched() -> None:
    named = Named("a", tag="b")
    assert copy.deepcopy(named) == pickle.loads(pickle.dumps(named)) == named
    match Point(1):
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_a_module_without_texts_for_annotations_is_refused() -> None:
    code = compile("class Late(Record):\n    x: int", "late", "exec", dont_inherit=True)
    with pytest.raises(TypeError, match="from __future__ import annotations"):
        exec(code, {"Record": Record, "__name__": "late"})
