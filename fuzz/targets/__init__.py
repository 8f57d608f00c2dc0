# SPDX-License-Identifier: Apache-2.0
"""One module for each target, with `run(data)`; it raises if something does not hold."""
