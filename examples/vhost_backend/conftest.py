# SPDX-License-Identifier: Apache-2.0
"""Switches the fixtures of vdpa-net on."""

pytest_plugins = ["vdpa_net.testing.pytest_plugin"]
