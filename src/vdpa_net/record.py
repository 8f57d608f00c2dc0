# SPDX-License-Identifier: Apache-2.0
"""Immutable values with named fields, for the modules that a device needs before it listens.

    class Place(Record):
        region: str
        offset: int = 0

A record is to its user what a frozen dataclass with slots is: fields by position or name, defaults,
`__post_init__`, `==`, hash and repr by fields, inheritance, `replace`. The difference is the cost of a class:
`dataclasses` generates and compiles source code for each one (and imports `inspect` to do so), which for
sixty of them was a third of the time that a device took to listen. Type checkers take it for a dataclass.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeVar, dataclass_transform

_MISSING: Final = object()
_R = TypeVar("_R", bound="Record")


@dataclass_transform(frozen_default=True)
class _RecordType(type):
    """Makes slots of the annotated names; those of a class with `kw_only=True` are given by name only.

    Defaults are shared by all records of the class, so they have to be immutable, too.
    """

    _fields: tuple[str, ...]
    _positional: tuple[str, ...]
    _defaults: dict[str, object]
    _setters: tuple[Any, ...]

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, kw_only: bool = False
    ) -> _RecordType:
        annotations = namespace.get("__annotations__", {})
        if "__annotate_func__" in namespace or not all(
            isinstance(kind, str) for kind in annotations.values()
        ):
            # Evaluating them would cost what records save.
            raise TypeError(f"{name}: a module with records needs `from __future__ import annotations`")
        inherited = [base for base in bases if isinstance(base, _RecordType)]
        own = [key for key, kind in annotations.items() if _is_field(kind)]
        before = _joined(base._fields for base in inherited)
        fields = _joined((before, own))
        positional = _joined((_joined(base._positional for base in inherited), () if kw_only else own))
        defaults = {key: value for base in inherited for key, value in base._defaults.items()}
        defaults |= {key: namespace.pop(key) for key in own if key in namespace}
        namespace["__slots__"] = (*namespace.get("__slots__", ()), *(key for key in own if key not in before))
        namespace["__match_args__"] = positional
        made = super().__new__(mcs, name, bases, namespace)
        made._fields, made._positional, made._defaults = fields, positional, defaults
        made._setters = tuple(getattr(made, key).__set__ for key in fields)
        return made


def _is_field(annotation: str) -> bool:
    return not annotation.startswith("ClassVar")


def _joined(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in names for name in part))


class Record(metaclass=_RecordType):
    """Base of immutable values; the module's text says how they behave."""

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]]
    _positional: ClassVar[tuple[str, ...]]
    _defaults: ClassVar[dict[str, object]]
    _setters: ClassVar[tuple[Any, ...]]

    def __init__(self, *values: object, **named: object) -> None:
        if named or len(values) != len(self._fields) or self._positional != self._fields:
            values = self._complete(values, named)
        for set_field, value in zip(self._setters, values, strict=True):
            set_field(self, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check what the fields must be together."""

    def _complete(self, values: tuple[object, ...], named: dict[str, object]) -> tuple[object, ...]:
        kind = type(self).__name__
        if len(values) > len(self._positional):
            raise TypeError(f"{kind} takes {len(self._positional)} values by position, got {len(values)}")
        given = dict(zip(self._positional, values, strict=False))
        if wrong := [name for name in named if name in given or name not in self._fields]:
            raise TypeError(f"{kind}: {wrong[0]} is {'given twice' if wrong[0] in given else 'no field'}")
        given = {**self._defaults, **given, **named}
        if missing := [name for name in self._fields if name not in given]:
            raise TypeError(f"{kind}: {', '.join(missing)} missing")
        return tuple(given[name] for name in self._fields)

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: a record does not change; see `replace`")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: a record does not change")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__qualname__}({told})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self._values())

    def __replace__(self, **changes: object) -> Record:
        return replace(self, **changes)


def _restore(kind: type[_R], values: tuple[object, ...]) -> _R:
    return kind(**dict(zip(kind._fields, values, strict=True)))


def replace(record: _R, **changes: object) -> _R:
    """A record like this one with some fields changed, checked as a new one is."""
    return type(record)(**{**as_dict(record), **changes})


def as_dict(record: Record) -> dict[str, object]:
    """The fields by name; values that are records themselves stay what they are."""
    return {name: getattr(record, name) for name in record._fields}
