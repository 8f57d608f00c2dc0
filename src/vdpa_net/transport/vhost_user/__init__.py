# SPDX-License-Identifier: Apache-2.0
"""The vhost-user back end's side of the socket: a session without I/O and a thin server."""
