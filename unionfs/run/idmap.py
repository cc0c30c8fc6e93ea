"""Which ids a user namespace has: this user as root, and the subordinate ids of /etc/subuid and /etc/subgid.

Sources: user_namespaces(7), subuid(5), newuidmap(1).
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable

import attrs


@attrs.frozen
class IdRange:
    """``count`` ids from ``inside`` on in the namespace are ``outside`` and following ones outside."""

    inside: int
    outside: int
    count: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


@attrs.frozen
class IdMaps:
    """The two maps of a user namespace. One range in each is all that a user may give without a helper's aid."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @property
    def single(self) -> bool:
        """Whether root is the only user: programs that change owners fail then."""
        return len(self.uids) == 1 or len(self.gids) == 1


def maps_for_this_user() -> IdMaps:
    """This user as root, and with ``newuidmap`` installed the subordinate ids from 1 on."""
    uid, gid = os.geteuid(), os.getegid()
    names = {str(uid)}
    try:
        names.add(pwd.getpwuid(uid).pw_name)
    except KeyError:
        pass  # A user without an entry may still have ids by number.
    helpers = shutil.which("newuidmap") and shutil.which("newgidmap")
    uids, gids = (subordinate(path, names) if helpers else () for path in ("/etc/subuid", "/etc/subgid"))
    if not uids or not gids:
        uids = gids = ()
    return IdMaps((IdRange(0, uid, 1), *uids), (IdRange(0, gid, 1), *gids))


def subordinate(path: str, names: Iterable[str]) -> tuple[IdRange, ...]:
    """The ranges that a file like /etc/subuid gives to these names, from id 1 inside on."""
    ranges: list[IdRange] = []
    inside = 1
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] not in names or not (fields[1].isdigit() and fields[2].isdigit()):
            continue
        count = min(int(fields[2]), (1 << 32) - 2 - inside)
        if count > 0:
            ranges.append(IdRange(inside, int(fields[1]), count))
            inside += count
    return tuple(ranges)


def write_maps(pid: int, maps: IdMaps) -> IdMaps:
    """Give the user namespace of ``pid``, a child of ours, its ids; answers the maps that it got.

    Where the helpers refuse the subordinate ids, it is root alone. Raises ``OSError``.
    """
    uids, gids = maps.uids, maps.gids
    if len(uids) == 1 or not _help("newuidmap", pid, uids):
        uids = uids[:1]
        _write(f"/proc/{pid}/uid_map", str(uids[0]))
    if len(gids) == 1 or not _help("newgidmap", pid, gids):
        gids = gids[:1]
        _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/gid_map", str(gids[0]))
    return IdMaps(uids, gids)


def _help(helper: str, pid: int, ranges: tuple[IdRange, ...]) -> bool:
    numbers = " ".join(map(str, ranges)).split()
    done = subprocess.run([helper, str(pid), *numbers], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
