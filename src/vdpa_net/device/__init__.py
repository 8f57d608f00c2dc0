# SPDX-License-Identifier: Apache-2.0
"""What the guest driver sees: PCI function, virtio registers, doorbells, control queue."""
