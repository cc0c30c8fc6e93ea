"""Mounts made by an unprivileged user: with fusermount, and as root of a user namespace."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence

import pytest

from tests import support

pytestmark = pytest.mark.fuse


class KnownUser(support.AsUser):
    """One whose name fusermount can look up."""

    def _script(self, command: Sequence[str], fuse: bool) -> str:
        passwd = shlex.quote(f"{self.scratch}/passwd")
        line = f"echo somebody:x:{self.uid}:{self.gid}::/:/bin/sh"
        return f"{{ cat /etc/passwd; {line}; }} > {passwd}; mount --bind {passwd} /etc/passwd\n" + super()._script(
            command, fuse
        )


@pytest.fixture
def user() -> Iterator[support.AsUser]:
    with KnownUser() as found:
        yield found


API = """
import os
import unionfs.mount
from unionfs.union.fs import UnionFS
for name in ("l1", "l2", "l3", "upper", "work", "mnt"):
    os.mkdir(name)
with open("l3/file", "w") as file:
    file.write("from below")
with UnionFS(lower=["l1", "l2", "l3"], upper="upper", work="work") as fs, unionfs.mount.mount(fs, "mnt"):
    with open("mnt/file", "a") as file:
        file.write(", and more")
    os.rename("mnt/file", "mnt/other")
    print(os.path.ismount("mnt"), os.listdir("mnt"), os.stat("mnt/other").st_uid == os.getuid())
with open("upper/other") as file:
    print(file.read(), os.listdir("mnt"))
"""

COMMANDS = """
import os, subprocess, sys
for name in ("a", "b", "c", "up", "mnt", "mnt/covered"):
    os.mkdir(name)
unionfs = [sys.executable, "-m", "unionfs.cli"]
for turn in range(2):
    subprocess.run([*unionfs, "mount", "mnt", "-l", "a", "-l", "b", "-l", "c", "-u", "up"], check=True)
    with open("mnt/new", "a") as file:
        file.write("by a user ")
    subprocess.run([*unionfs, "umount", "mnt"], check=True)
with open("up/new") as file:
    print(file.read(), os.listdir("mnt"))
"""

UNREADABLE = """
import os, subprocess, sys
for name in ("a", "mnt"):
    os.mkdir(name)
os.chmod("a", 0)
done = subprocess.run([sys.executable, "-m", "unionfs.cli", "mount", "mnt", "-l", "a"], capture_output=True, text=True)
print(done.returncode, done.stderr, end="")
"""


@pytest.mark.parametrize(("code", "expected"), [
    (API, "True ['other'] True\nfrom below, and more []\n"),
    (COMMANDS, "by a user by a user  ['covered']\n"),
])  # fmt: skip
@pytest.mark.parametrize(
    "prefix", [[], pytest.param(support.USER_NAMESPACE, marks=pytest.mark.userns)], ids=["user", "namespace"]
)
def test_mounts(user: support.AsUser, prefix: list[str], code: str, expected: str) -> None:
    assert user.run([*prefix, sys.executable, "-c", code], fuse=True).stdout == expected


def test_an_unreadable_lower(user: support.AsUser) -> None:
    out = user.python(UNREADABLE, fuse=True).stdout
    assert out.startswith("1 unionfs: ")
    assert "Permission denied" in out
    assert out.count("\n") == 1


def test_others_are_let_in_only_if_fuse_conf_says_so(user: support.AsUser) -> None:
    code = API.replace('mount(fs, "mnt")', 'mount(fs, "mnt", allow_other=True)')
    done = user.python(code, fuse=True, check=False)
    if done.returncode:
        assert "user_allow_other" in done.stderr
    assert not os.path.ismount(user.scratch / "mnt")
