# SPDX-License-Identifier: Apache-2.0
"""`python -m vdpa_net` is the command `vdpa-net`."""

from vdpa_net.cli import main

if __name__ == "__main__":
    main()
