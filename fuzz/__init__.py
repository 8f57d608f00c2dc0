# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: what strangers can send, as operation lists on the real code. docs/fuzzing.md says how."""
