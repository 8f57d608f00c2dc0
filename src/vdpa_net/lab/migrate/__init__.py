# SPDX-License-Identifier: Apache-2.0
"""`vdpa-net migrate`: a running guest moves between two vdpa net devices, and the verdict on it."""
