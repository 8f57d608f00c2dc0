# SPDX-License-Identifier: Apache-2.0
"""The world around the device: image, guests, QEMU, network, traffic.

`image` builds the root file system that the rest comes from, `guest` makes small guests of it, `machine` runs
them, `network` and `endpoint` are what their packets meet, `boot` puts it all together around one device.
"""
