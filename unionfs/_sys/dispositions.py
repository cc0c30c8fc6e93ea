"""Signal dispositions from any thread: ``signal.signal`` works in the main thread alone.

For libraries that change dispositions behind Python's back; Python's own table is not told.
"""

from __future__ import annotations

import ctypes
import signal

from unionfs._sys.libc import function

_signal = function("signal", ctypes.c_int, ctypes.c_void_p)


def as_python_says(signum: int) -> None:
    """Give ``signum`` the disposition that ``signal.getsignal`` reports, where that is ``SIG_DFL`` or ``SIG_IGN``.

    A Python handler is left alone (signal(2)).
    """
    wanted = signal.getsignal(signum)
    if _signal is not None and wanted in (signal.SIG_DFL, signal.SIG_IGN):
        _signal(signum, int(wanted))
