# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net bench`: the device beside its peers and its limits, measured in the same run.

Machines differ and change their pace, so ratios count: contestants take turns (A B, B A, ...), each round has
one pace, and a goal is about the median of the rounds' ratios. A peer that is missing is an error, never an
empty row.
"""

GROUPS = ("tap", "user", "ring", "control", "guest", "migration")
"""Groups of cases in the order in which they are measured; those of a group are set up together."""
