# SPDX-License-Identifier: Apache-2.0
"""The columns of the tensors of `Lives`."""

FIRST, ROW = 0, 1
"""Of `marks`."""
RECENT, LOSS, ERROR, NORM, RETENTION = 0, 1, 2, 3, 4
"""Of `traces`."""
NEXT, GIVEN, TAKEN, REVIEWED = 0, 1, 2, 3
"""Of `counts`."""
NOBODY, NEVER = -1, -2
"""In `holders`: the row is free; it is not to be given."""
