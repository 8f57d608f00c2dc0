# SPDX-License-Identifier: Apache-2.0
"""Where the machine's own apt gets Debian from: its source lists, both formats (sources.list(5))."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vdpa_net.errors import LabError

_RELEASES = {
    *("oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"),
    *("buster", "bullseye", "bookworm", "trixie", "forky", "duke"),
}
_POCKET = re.compile(r"-(updates|backports|backports-sloppy|proposed-updates)$")
_ONE_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$"
)


@dataclass(frozen=True)
class Source:
    """One archive: `signed_by` is a path of a keyring, empty if apt's trusted keys are meant."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""

    @property
    def is_debian(self) -> bool:
        """Whether this is Debian's main archive (not its security archive, not a third party's)."""
        return _POCKET.sub("", self.suite) in _RELEASES and "main" in self.components


def parse_one_line(text: str) -> Iterator[Source]:
    """Sources of a `*.list` file; lines that are none are passed over."""
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0].strip())
        if match:
            options = dict(
                item.split("=", 1) for item in (match["options"] or "").split() if item.count("=") >= 1
            )
            components = tuple(match["components"].split())
            yield Source(match["uri"], match["suite"], components, options.get("signed-by", ""))


def parse_deb822(text: str) -> Iterator[Source]:
    """Sources of a `*.sources` file; disabled stanzas are passed over."""
    for stanza in re.split(r"\n\s*\n", text):
        fields = _stanza(stanza)
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false")
        if not enabled or "deb" not in fields.get("types", "").split():
            continue
        signed_by = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                keyring = signed_by if signed_by.startswith("/") else ""
                yield Source(uri, suite, tuple(fields.get("components", "").split()), keyring)


def _stanza(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t":
            fields[name] = f"{fields.get(name, '')} {line.strip()}".strip()
        elif ":" in line:
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def configured_sources(directory: Path = Path("/etc/apt")) -> list[Source]:
    """All sources of an apt configuration directory, in the order in which apt reads them."""
    found: list[Source] = []
    files = [directory / "sources.list", *sorted((directory / "sources.list.d").glob("*"))]
    for path in files:
        if path.is_file() and path.suffix in (".list", ".sources"):
            parse = parse_one_line if path.suffix == ".list" else parse_deb822
            found.extend(parse(path.read_text(errors="replace")))
    return found


def debian_mirror(sources: list[Source]) -> Source:
    """The first of Debian's mirrors among them. Raises LabError if there is none."""
    for source in sources:
        if source.is_debian:
            return Source(_behind_mirror_list(source.uri), source.suite, source.components, source.signed_by)
    others = ", ".join(sorted({source.uri for source in sources})) or "nothing"
    raise LabError(
        f"no Debian mirror in this machine's apt configuration (it names {others}): give one with --mirror"
    )


def _behind_mirror_list(uri: str) -> str:
    prefix = "mirror+file:"
    if not uri.startswith(prefix):
        return uri
    lines = Path(uri.removeprefix(prefix)).read_text().splitlines()
    uris = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if not uris:
        raise LabError(f"the mirror list {uri} is empty, expected one URI a line")
    return uris[0]


def network_options() -> list[str]:
    """The machine's own apt settings about proxies and certificates, as apt options."""
    try:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    wanted = re.compile(r'^Acquire::(https?)::[A-Za-z0-9:._/-]+ "[^"]+";$')
    return [line.rstrip(";") for line in dump.splitlines() if wanted.match(line)]
