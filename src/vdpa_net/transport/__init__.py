# SPDX-License-Identifier: Apache-2.0
"""Sockets: vfio-user, vhost-user, the control channel. Sessions are sans-IO, the shells around them thin."""
