# SPDX-License-Identifier: Apache-2.0
"""Layouts, register tables and message tables of the specifications. No I/O, no state."""
