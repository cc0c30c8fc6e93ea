"""File handles as overlayfs stores them: ``name_to_handle_at(2)`` in the frame of ``struct ovl_fb``.

overlayfs names an index entry, and fills ``overlay.origin``, with the handle of the lower inode
(fs/overlayfs/overlayfs.h, ``struct ovl_fb``; fs/overlayfs/copy_up.c, ``ovl_encode_real_fh``).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from unionfs._sys.libc import function

_MAX_HANDLE = 128
_AT_EMPTY_PATH = 0x1000
_FS_IOC_GETFSUUID = 0x80111500  # _IOR(0x15, 0, struct fsuuid2): u8 len, u8 uuid[16] (Linux 6.9)
_EXT4_IOC_GETFSUUID = 0x8008662C  # _IOR('f', 44, struct fsuuid): u32 len, u32 flags, u8 uuid[] (Linux 5.19)

_OVL_FH_VERSION = 0
_OVL_FH_MAGIC = 0xFB
_OVL_FH_FLAG_BIG_ENDIAN = 1
_FRAME = struct.Struct("=BBBBB16s")

_open_by_handle_at = function("open_by_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_name_to_handle_at = function(
    "name_to_handle_at",
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)


def file_handle(dir_fd: int, name: bytes) -> tuple[int, bytes] | None:
    """``(type, bytes)`` of the handle of ``name`` below ``dir_fd``; ``None`` where the file system has no handles."""
    if _name_to_handle_at is None:
        return None
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", _MAX_HANDLE, 0), 8 + _MAX_HANDLE)
    mount_id = ctypes.c_int()
    if _name_to_handle_at(dir_fd, name, buffer, ctypes.byref(mount_id), 0) < 0:
        return None
    size, kind = struct.unpack_from("=Ii", buffer.raw)
    return kind, buffer.raw[8 : 8 + size]


def filesystem_uuid(fd: int) -> bytes | None:
    """The 16 bytes that the kernel holds as ``s_uuid`` of the file system of ``fd``; ``None`` if it won't tell."""
    answer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
        return bytes(answer[1:17])
    except OSError:
        pass  # Before Linux 6.9: only ext4 tells.
    ext4 = bytearray(struct.pack("=II", 16, 0) + bytes(16))
    try:
        fcntl.ioctl(fd, _EXT4_IOC_GETFSUUID, ext4)
        return bytes(ext4[8:24])
    except OSError:
        return None


def overlay_handle(dir_fd: int, name: bytes, uuid: bytes) -> bytes | None:
    """The handle of ``name`` in the frame of ``struct ovl_fb``, as overlayfs writes it; ``None`` without handles."""
    handle = file_handle(dir_fd, name)
    if handle is None or not 0 <= handle[0] <= 255:
        return None
    kind, fid = handle
    flags = _OVL_FH_FLAG_BIG_ENDIAN if struct.pack("=H", 1) == b"\0\1" else 0
    length = _FRAME.size + len(fid)
    if length > 255:
        return None
    return _FRAME.pack(_OVL_FH_VERSION, _OVL_FH_MAGIC, length, flags, kind, uuid) + fid


def stat_by_handle(fd: int, handle: bytes, uuid: bytes) -> os.stat_result | None:
    """Metadata of the object with this handle (as ``overlay_handle`` gives it) on the file system of ``fd``.

    ``None`` where it can't be told: the object is gone or on another file system, or this process may not ask
    (open_by_handle_at(2): CAP_DAC_READ_SEARCH).
    """
    if _open_by_handle_at is None or len(handle) <= _FRAME.size:
        return None
    version, magic, length, _, kind, of = _FRAME.unpack_from(handle)
    if (version, magic, length, of) != (_OVL_FH_VERSION, _OVL_FH_MAGIC, len(handle), uuid):
        return None
    fid = handle[_FRAME.size :]
    found = _open_by_handle_at(fd, struct.pack("=Ii", len(fid), kind) + fid, os.O_PATH | os.O_CLOEXEC)
    if found < 0:
        return None
    try:
        return os.fstat(found)
    finally:
        os.close(found)


def can_use_trusted(fd: int) -> bool:
    """Whether this process may write ``trusted.*`` attributes on the file system of ``fd`` (xattr(7):
    CAP_SYS_ADMIN)."""
    probe = "trusted.overlay.unionfs.probe"
    try:
        os.setxattr(fd, probe, b"")
        os.removexattr(fd, probe)
    except OSError:
        return False
    return True
