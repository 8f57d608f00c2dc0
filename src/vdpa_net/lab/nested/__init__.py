# SPDX-License-Identifier: Apache-2.0
"""The nested lab: two level-1 guests with a device each, and a level-2 guest that moves between them."""
