# SPDX-License-Identifier: Apache-2.0
"""The lab's traffic: numbered, checksummed packets both ways, and what is made of what arrived."""
