"""Small values of the public API."""

from __future__ import annotations

import attrs

RENAME_NOREPLACE = 1
"""``rename``: fail with ``EEXIST`` where the new name exists (renameat2(2))."""
RENAME_EXCHANGE = 2
"""``rename``: exchange the two names in one step (renameat2(2))."""
