# SPDX-License-Identifier: Apache-2.0
"""Public test doubles: guest memory, rings, a guest's NIC driver, a vhost-user front end, the log test.

They are the other side of every interface that the package offers, written from the specifications and
sharing as little as possible with the code they exercise.
"""
