"""The C library, loaded once, and the one way to call it."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)


def function(name: str, *argtypes: Any) -> Any:
    """The C function ``name`` with these argument types, or ``None`` where the C library does not have it."""
    found = getattr(_libc, name, None)
    if found is not None:
        found.argtypes = argtypes
        found.restype = ctypes.c_int
    return found


def check(result: int, *names: bytes) -> int:
    """``result``, or the ``OSError`` that errno tells when it is negative, with up to two file names."""
    if result < 0:
        error = ctypes.get_errno()
        if len(names) == 2:
            raise OSError(error, os.strerror(error), names[0], None, names[1])
        raise OSError(error, os.strerror(error), *names)
    return result
