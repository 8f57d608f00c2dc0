# SPDX-License-Identifier: Apache-2.0
"""vfio-user: a sans-IO session for each side, the mapping to a PCI function, and the socket shells."""
