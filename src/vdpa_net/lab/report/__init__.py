# SPDX-License-Identifier: Apache-2.0
"""The report of a migration: one HTML page with pictures, made from the verdict's JSON alone.

Any run whose JSON has `verdict`, `lines` and, in its `context`, `rounds` with the fields that `vdpa-net
migrate` writes can be reported on; what a round lacks is left out of the page.
"""

from vdpa_net.lab.report.page import write_report
from vdpa_net.lab.report.pictures import require_plots

__all__ = ["require_plots", "write_report"]
