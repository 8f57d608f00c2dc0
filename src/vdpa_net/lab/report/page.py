# SPDX-License-Identifier: Apache-2.0
"""The page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def require_plots() -> None:
    """Raises MissingTool without matplotlib."""


def write_report(directory: Path, verdict: Mapping[str, Any]) -> None:
    """Write it."""
