# SPDX-License-Identifier: Apache-2.0
"""What `vdpa-net migrate` refuses before it sets anything up, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdpa_net.errors import OptionError
from vdpa_net.lab.migrate.options import (
    CANCEL_PHASES,
    DISTURBANCES,
    MigrateOptions,
    parse_backend_sockets,
    parse_size,
)
from vdpa_net.lab.migrate.precopy import MIB, PrecopyOptions


def test_defaults_and_every_phase_and_disturbance_are_possible() -> None:
    MigrateOptions().check()
    for phase in CANCEL_PHASES:
        MigrateOptions(cancel_at=phase).check()
    for name in DISTURBANCES:
        MigrateOptions(disturbances=(name,), queue_pairs=2).check()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rounds": 0}, "rounds 0"),
        ({"transport": "carrier-pigeon"}, "carrier-pigeon"),
        ({"memory_mib": 64}, "64"),
        ({"rate_pps": 0}, "rate"),
        ({"lengths": (10, 100)}, "size 10-100"),
        ({"lengths": (800, 700)}, "size 800-700"),
        ({"lengths": (80, 9000)}, "size 80-9000"),
        ({"queue_pairs": 99}, "queue pairs 99"),
        ({"cancel_at": "breakfast"}, "breakfast"),
        ({"disturbances": ("dance",)}, "dance"),
        ({"disturbances": ("channels",)}, "--queue-pairs"),
        ({"faults": ("drop-dirty-marks=1",)}, "drop-dirty-marks"),
        ({"downtime_limit_ms": 0}, "downtime limit"),
        ({"kernel": Path("/no/kernel")}, "/no/kernel"),
        ({"image": Path("/no/image")}, "/no/image"),
        ({"backend_sockets": (Path("/no/a"), Path("/no/b"))}, "/no/a"),
        ({"backend_sockets": (Path("/no/a"), Path("/no/b")), "faults": ("no-announce",)}, "--fault"),
    ],
)
def test_what_can_not_be_is_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        MigrateOptions(**options).check()  # type: ignore[arg-type]


def test_postcopy_is_refused_with_the_reason() -> None:
    with pytest.raises(OptionError, match="VHOST_USER_PROTOCOL_F_PAGEFAULT"):
        MigrateOptions(postcopy=True).check()


def test_size_is_one_length_or_a_range() -> None:
    assert parse_size("700") == (700, 700)
    assert parse_size("80-1400") == (80, 1400)
    for text in ("", "x", "1-", "-5", "1-2-3"):
        with pytest.raises(OptionError):
            parse_size(text)


def test_backend_sockets_are_two() -> None:
    assert parse_backend_sockets("/run/a,/run/b") == (Path("/run/a"), Path("/run/b"))
    for text in ("", "/run/a", "/run/a,", ",/run/b", "/a,/b,/c"):
        with pytest.raises(OptionError):
            parse_backend_sockets(text)


def test_each_queue_gets_a_flow() -> None:
    assert MigrateOptions().flows == 1
    assert MigrateOptions(queue_pairs=2).flows == 4


def test_bandwidth_limits_every_phase() -> None:
    limited = PrecopyOptions(64, one_pass=False, bandwidth_bytes_per_s=4 * MIB)
    assert limited.limits(96 * MIB) == {"max-bandwidth": 4 * MIB}
    assert limited.limits(1 * MIB, 300) == {"max-bandwidth": 1 * MIB, "downtime-limit": 300}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"faults": ("no-announce",)}, "--fault"),
        ({"transport": "vfio-user"}, "--transport"),
        ({"queue_pairs": 2}, "--queue-pairs"),
        ({"backend_sockets": (Path("a"), Path("b"))}, "--backend-socket"),
    ],
)
def test_the_reference_has_no_device_to_be_told_about(more: dict[str, object], named: str) -> None:
    with pytest.raises(OptionError, match=f"{named} is about .*, --reference replaces it"):
        MigrateOptions(reference=True, **more).check()  # type: ignore[arg-type]
