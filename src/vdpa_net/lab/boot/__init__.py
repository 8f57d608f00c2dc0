# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net lab boot`: a guest on a served device, and what its network does."""

from vdpa_net.lab.boot.options import GUESTS, MACHINES, BootOptions
from vdpa_net.lab.boot.result import BootResult
from vdpa_net.lab.boot.run import run, shell

__all__ = ["GUESTS", "MACHINES", "BootOptions", "BootResult", "run", "shell"]
