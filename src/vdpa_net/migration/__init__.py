# SPDX-License-Identifier: Apache-2.0
"""Live migration: the LM register block, its faults, and the record of what peers did wrong."""
