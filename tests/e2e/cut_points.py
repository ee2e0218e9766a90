"""How many points a deploy is cut at: what each sweep must reach at least, and what the README states is checked against.

A sweep that learns only while it runs how many points there are (calls, for one) may try more; each test tells with
`record_property("cut_points", …)` how many it did try.
"""

from __future__ import annotations

UPDATE_BYTES = 110
FIRST_DEPLOY_BYTES = 50
LARGE_FILE_SHARES = (0.3, 0.5, 0.7, 0.9)
KILLS_ON_THE_DEVICE = 16
CALLS = 12
FULL_DISKS = 3
REVOKED_KEYS = 3

LEAST = (
    round(0.95 * UPDATE_BYTES)
    + FIRST_DEPLOY_BYTES
    + len(LARGE_FILE_SHARES)
    + KILLS_ON_THE_DEVICE
    # The connection cut, and the host's process killed, before each call and after it.
    + 4 * CALLS
    + FULL_DISKS
    + REVOKED_KEYS
)
