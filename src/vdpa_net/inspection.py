# SPDX-License-Identifier: Apache-2.0
"""The state of a device for people: asked of its process, and put into words."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vdpa_net.errors import PeerError, PeerGone
from vdpa_net.wire import describe, virtio_pci
from vdpa_net.wire.lm import PACKED_OFFSET_MASK, ring_state_name

if TYPE_CHECKING:
    from rich.console import RenderableType

State = Mapping[str, Any]

ATS_NOTE = (
    "an enable bit and nothing more: vfio-user has no translation requests,"
    " DMA_MAP and DMA_UNMAP are the whole IOTLB"
)
SHOWN_VIOLATIONS = 10
FEW_QUEUES = 16
_QUEUE_COUNTERS = ("packets", "bytes", "kicks", "interrupts")
_DROPS = "drops_"


def by_control(path: Path) -> State:
    """The state that the process of a device tells on its control socket.

    Raises PeerGone when nobody listens there, PeerError when it is the socket of something else.
    """
    from vdpa_net.transport.control import ControlClient  # noqa: PLC0415

    try:
        with ControlClient(path) as control:
            return cast(State, control.call("inspect"))
    except PeerGone as error:
        raise PeerGone(
            f"{error}; expected the socket that a command like `vdpa-net serve` was given by --control",
            errno=error.errno,
        ) from error
    except PeerError as error:
        if "method 'inspect'" in str(error):
            raise PeerError(
                f"{path}: a process without a device of its own (that of `vdpa-net driver`?)"
            ) from error
        raise


def render(state: State) -> Iterator[RenderableType]:
    """The state as things that a rich console prints. What a state does not tell is left out."""
    yield _table("device", None, _device_rows(state))
    shown = _shown(state["queues"])
    header = ("queue", "size", "state", "last_avail_idx", "used_idx", "vector")
    yield _table("queues", header, (_queue_row(queue, state) for queue in shown))
    if any("counters" in queue for queue in shown):
        header = ("queue", *_QUEUE_COUNTERS, "drops")
        yield _table("traffic", header, (_traffic_row(queue, state) for queue in shown))
    if left := len(state["queues"]) - len(shown):
        yield f"{left} queues that were never used are not shown"
    if state.get("lm") is not None:
        yield _table("LM registers", None, _lm_rows(state, {queue["index"] for queue in shown}))
    if "log" in state:
        yield _table("dirty log", None, ((name, str(value)) for name, value in state["log"].items()))
    if "violations" in state:
        yield _violations(state)


def _table(title: str, header: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> RenderableType:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        show_header=header is not None,
        box=box.SIMPLE_HEAD,
    )
    for name in header or ():
        table.add_column(name, justify="left" if name in ("queue", "state", "drops") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _shown(queues: Sequence[State]) -> list[State]:
    """All queues, or where there are very many, those that were used."""
    if len(queues) <= FEW_QUEUES:
        return list(queues)
    return [queue for queue in queues if queue["enabled"] or any(queue.get("counters", {}).values())]


def _device_rows(state: State) -> Iterator[tuple[str, str]]:
    yield "address", f"{state['mac']}, MTU {state['mtu']}"
    yield "profile", state["profile"] if state["vdpa"] else "none: vdpa=off, there are no LM registers"
    names = ", ".join(state["status_names"]) or "reset, no driver"
    yield "status", f"{state['status']:#04x} {names}"
    yield "features", ", ".join(state["features"]) or "none negotiated"
    refused = [name for name in state["features_offered"] if name not in state["features"]]
    yield "not taken", ", ".join(refused) or "none"
    if (ats := state.get("ats")) is not None:
        yield "ATS", f"{'enabled' if ats['enabled'] else 'not enabled'}; {ATS_NOTE}"
    if "dma_maps" in state:
        yield "DMA maps", str(state["dma_maps"])
    for fault, fired in state.get("faults", {}).items():
        yield "fault", f"{fault}, fired {fired} times"


def _name(queue: State, state: State) -> str:
    index, queues = queue["index"], len(state["queues"])
    role = "control" if queues % 2 and index == queues - 1 else ("receive", "transmit")[index % 2]
    return f"{index} {role}"


def _queue_row(queue: State, state: State) -> list[str]:
    running = "running" if queue["running"] else "enabled" if queue["enabled"] else "stopped"
    vector = "none" if queue["msix_vector"] == virtio_pci.MSI_NO_VECTOR else str(queue["msix_vector"])
    packed = "RING_PACKED" in state["features"]
    indices = [_index(queue[name], packed=packed) for name in ("last_avail_idx", "used_idx")]
    return [_name(queue, state), str(queue["size"]), running, *indices, vector]


def _index(value: int, *, packed: bool) -> str:
    """An index of a ring; that of a packed one is a descriptor's offset, with the wrap counter."""
    return f"{value & PACKED_OFFSET_MASK} wrap {value >> 15}" if packed else str(value)


def _traffic_row(queue: State, state: State) -> list[str]:
    counters = queue["counters"]
    return [_name(queue, state), *(str(counters.get(name, 0)) for name in _QUEUE_COUNTERS), _drops(counters)]


def _drops(counters: Mapping[str, int]) -> str:
    drops = {key.removeprefix(_DROPS): n for key, n in counters.items() if key.startswith(_DROPS) and n}
    return ", ".join(f"{reason} {n}" for reason, n in drops.items()) or "0"


def _lm_rows(state: State, queues: Container[int]) -> Iterator[tuple[str, str, str]]:
    packed = "RING_PACKED" in state["features"]
    left_out = {ring_state_name(index) for index in range(len(state["queues"])) if index not in queues}
    for name, value in state["lm"].items():
        if name not in left_out:
            yield name, f"{value:#010x}", describe.describe(f"lm.{name}", value, packed=packed)


def _violations(state: State) -> RenderableType:
    from rich.text import Text  # noqa: PLC0415

    lines = [f"violations: {state['violation_count']}"]
    lines += [f"  {kind}: {count}" for kind, count in state["violation_kinds"].items()]
    shown = state["violations"][:SHOWN_VIOLATIONS]
    if shown:
        lines.append("the first of them:" if len(state["violations"]) > len(shown) else "they are:")
    lines += [
        f"  {item['where']}: {item['what']}, value {item['value']:#x} ({item['clause']}) {item['detail']}"
        for item in shown
    ]
    return Text("\n".join(lines))
