# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net bench`: the device beside its peers and its limits, measured in the same run.

Machines differ, so ratios count: contestants take turns (A B A B ...), a case tells medians with minimum and
maximum, and a goal is a ratio of two medians. A peer that is missing is an error, never an empty row.
"""

GROUPS = ("tap", "user", "ring", "control", "guest", "migration")
"""Groups of cases in the order in which they are measured; those of a group are set up together."""
