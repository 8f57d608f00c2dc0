# SPDX-License-Identifier: Apache-2.0
"""The syntax of QEMU's option strings, and readers that turn the text of one property into its value.

    NAME,key=value,key,key=value          or          {"driver": "NAME", "key": value}

`key` means `key=on`; two commas are one that belongs to the value; the last of equal keys counts. A reader
raises ValueError, which says what was expected; `read_all` makes an OptionError of it, with the property's
name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from vdpa_net.cli.parser import near
from vdpa_net.errors import OptionError

Reader = Callable[[str], object]
Properties = Mapping[str, Reader | None]
"""What is known by name; None takes the text as it is."""

NOTHING = object()
"""What a reader returns for a value that is accepted and needs nothing done."""

NOT_YET = "is not supported yet"
_SWITCH = dict.fromkeys(("on", "yes", "true", "y"), True) | dict.fromkeys(("off", "no", "false", "n"), False)


def split_options(option: str, text: str, implied: str) -> tuple[str, dict[str, str]]:
    """The name and the pairs of an option string; `implied` is the key that the name may be written with.

    Raises OptionError on an empty name or key, and on JSON that is no object of texts, numbers and booleans.
    """
    if text.lstrip().startswith("{"):
        return _split_json(option, text, implied)
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    name = parts[0].removeprefix(f"{implied}=")
    pairs: dict[str, str] = {}
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if not key:
            raise OptionError(f"{option}: empty property name in {text!r}")
        pairs[key] = value if equals else "on"
    if not name:
        raise OptionError(f"{option}: {text!r} does not begin with a name")
    return name, pairs


def _split_json(option: str, text: str, implied: str) -> tuple[str, dict[str, str]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise OptionError(f"{option}: {error} in {text!r}") from error
    pairs = {key: _json_text(option, key, value) for key, value in found.items()}
    if not pairs.get(implied):
        raise OptionError(f"{option}: {text!r} does not have {implied!r}")
    return pairs.pop(implied), pairs


def _json_text(option: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int):
        return str(value)
    raise OptionError(f"{option}: {key}: {value!r}; expected a text, a number or a boolean")


def read_all(where: str, table: Properties, pairs: Mapping[str, str]) -> dict[str, object]:
    """The values of the pairs. Raises OptionError, which names the property and the nearest known one."""
    values: dict[str, object] = {}
    for key, text in pairs.items():
        if key not in table:
            raise OptionError(f"{where}: unknown property {key!r}{near(key, table)}")
        read = table[key]
        try:
            value = read(text) if read else text
        except ValueError as error:
            raise OptionError(f"{where}: {key}={text}: {error}") from None
        if value is not NOTHING:
            values[key] = value
    return values


def switch(text: str) -> bool:
    """on or off, in QEMU's spellings."""
    if text not in _SWITCH:
        raise ValueError("expected on or off")
    return _SWITCH[text]


def only(value: bool, reason: str) -> Reader:
    """A switch that has one position here; the reason for that."""

    def read(text: str) -> object:
        if switch(text) is not value:
            raise ValueError(reason)
        return NOTHING

    return read


def one_of(accepted: tuple[str, ...], reason: str) -> Reader:
    """One of these texts, and then there is nothing to be done."""

    def read(text: str) -> object:
        if text not in accepted:
            raise ValueError(f"{reason}; expected {' or '.join(accepted)}")
        return NOTHING

    return read


def number(low: int, high: int, *, power_of_two: bool = False, reason: str = "") -> Reader:
    """A number, decimal or with 0x; `reason` says why from `low` to `high`."""

    def read(text: str) -> int:
        kind = "a power of two" if power_of_two else "a number"
        try:
            value = int(text, 0)
        except ValueError:
            value = low - 1
        if not low <= value <= high or (power_of_two and value & (value - 1)):
            raise ValueError(f"expected {kind} from {low} to {high}{reason and f' ({reason})'}")
        return value

    return read


def zero_or(read_other: Reader) -> Reader:
    """0 (for none), or what the other reader takes."""
    return lambda text: 0 if text in ("0", "0x0") else read_other(text)


def octets(text: str) -> str:
    """A MAC address of any kind."""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError("expected six octets like 52:54:00:12:34:56")
    return text.lower()


def mac(text: str) -> str:
    """A unicast MAC address."""
    text = octets(text)
    if int(text[:2], 16) & 1:
        raise ValueError("a multicast address; expected a unicast one (lowest bit of the first octet 0)")
    return text


def script(text: str) -> str | None:
    """A program to run; `no` or nothing for none."""
    return None if text in ("no", "") else text


def refuse(reason: str) -> Reader:
    """A property that is known, and can't be had."""

    def read(_text: str) -> object:
        raise ValueError(reason)

    return read
