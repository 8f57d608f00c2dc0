# SPDX-License-Identifier: Apache-2.0
"""The report of a migration: one HTML page with pictures, from the verdict's JSON alone."""

from vdpa_net.lab.report.page import require_plots, write_report

__all__ = ["require_plots", "write_report"]
