# SPDX-License-Identifier: Apache-2.0
"""The dpdk-vdpa role: device handles, the vDPA driver, and what serves its vhost socket."""
