"""``inotify(7)``, for one question: when does a file system end?"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct

from unionfs._sys.libc import check, function

_CLOEXEC_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK
_IN_UNMOUNT = 0x2000
_IN_DELETE_SELF = 0x400
_EVENT = struct.Struct("iIII")

_init = function("inotify_init1", ctypes.c_int)
_add_watch = function("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class EndOfFilesystem:
    """The end of the file system that ``path`` is on: it is unmounted everywhere and nobody has a file of it open.

    A lazily detached file system ends with its last user, one that other mount namespaces show too with the last of
    them; ``/proc/self/mountinfo`` tells neither. The watch keeps nothing busy. Everything has been written to the file
    systems below by then (fs/super.c, ``generic_shutdown_super``). Raises ``OSError``: ``EMFILE``, ``ENOSPC`` (the
    user's limits on inotify).
    """

    def __init__(self, path: str) -> None:
        if _init is None or _add_watch is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._fd = check(_init(_CLOEXEC_NONBLOCK))
        try:
            # Some event must be asked for; IN_UNMOUNT comes unasked.
            check(_add_watch(self._fd, os.fsencode(path), _IN_DELETE_SELF), os.fsencode(path))
        except BaseException:
            self.close()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; ``False`` after ``timeout`` seconds."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while poll.poll(None if timeout is None else timeout * 1000):
            events, at = os.read(self._fd, 4096), 0
            while at < len(events):
                _, mask, _, length = _EVENT.unpack_from(events, at)
                if mask & _IN_UNMOUNT:
                    return True
                at += _EVENT.size + length
        return False

    def close(self) -> None:
        """Stop watching."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
