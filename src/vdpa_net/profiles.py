# SPDX-License-Identifier: Apache-2.0
"""`--profile`: a built-in layout of the LM registers by name, or one that the user wrote."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from vdpa_net.errors import OptionError
from vdpa_net.wire.lm import Profile, profile_by_name


def find_profile(text: str) -> Profile:
    """The profile that `text` names: `vdpa`, `ifcvf`, `ifcvf-linux`, or `MODULE:NAME`.

    The module is imported as a script in the working directory would import it. Raises OptionError.
    """
    module_name, colon, name = text.partition(":")
    if not colon:
        return profile_by_name(text)
    where = str(Path.cwd())
    if where not in sys.path:
        sys.path.insert(0, where)
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"--profile {text}: {error}") from error
    if not isinstance(found, Profile):
        raise OptionError(f"--profile {text}: it is a {type(found).__name__}, expected a vdpa_net.Profile")
    return found
