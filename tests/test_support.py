"""The fixtures do what they promise, also the promise to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support
from tests.support import AsUser


def test_scratch_takes_what_overlayfs_writes(scratch: Path, is_root: bool) -> None:
    namespace = "trusted" if is_root else "user"
    os.setxattr(scratch, f"{namespace}.unionfs.x", b"y")
    os.mknod(scratch / "w", 0o020000, 0)
    assert (scratch / "w").lstat().st_rdev == 0


def test_scratch_is_removed_with_a_very_deep_tree_in_it() -> None:
    directory = support.make_scratch()
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    support.remove_scratch(directory)
    assert not directory.exists()


@pytest.mark.root
def test_scratch_is_removed_with_mounts_in_use_in_it() -> None:
    directory = support.make_scratch()
    for name in ("a b", "a b/c"):
        (directory / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory / name], check=True)
    with open(directory / "a b/c/busy", "wb"):
        assert len(support.mounts_below(directory)) == 2
        support.remove_scratch(directory)
    assert not directory.exists()


def test_as_user_has_no_privilege_and_owns_its_scratch(as_user: AsUser) -> None:
    done = as_user.python("import os; print(os.getuid(), *os.getgroups()); open('mine', 'w')")
    assert done.stdout.split()[0] == str(as_user.uid) != "0"
    assert (as_user.scratch / "mine").stat().st_uid == as_user.uid
    if os.geteuid() == 0:
        assert as_user.run(["cat", "/etc/shadow"], check=False).returncode != 0


def test_as_user_imports_what_we_import(as_user: AsUser) -> None:
    assert as_user.python("import sys, attrs, xxhash, tests; print(sys.prefix)").stdout.strip() == sys.prefix


def test_as_user_tells_of_failure_and_signals(as_user: AsUser) -> None:
    assert as_user.python("import sys; sys.exit(7)", check=False).returncode == 7
    killed = as_user.python("import os; os.kill(os.getpid(), 9)", check=False).returncode
    assert killed == (128 + 9 if os.geteuid() == 0 else -9)
    with pytest.raises(pytest.fail.Exception, match="status 7"):
        as_user.python("import sys; sys.exit(7)")


@pytest.mark.root
def test_as_user_leaves_no_process_behind(as_user: AsUser) -> None:
    name = f"left-behind-{os.getpid()}"
    code = "import subprocess, sys; subprocess.Popen([sys.argv[1], '300'], executable='/bin/sleep'); print('left')"
    assert as_user.python(code, name).stdout == "left\n"
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if name.encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.root
@pytest.mark.parametrize("closed", ["parent", "itself"])
def test_as_user_reaches_directories_closed_to_others(scratch: Path, as_user: AsUser, closed: str) -> None:
    parent = scratch / "parent"
    needed = parent / "needed"
    (needed / "sub").mkdir(parents=True)
    (needed / "file").write_text("hello")
    (needed / "link").symlink_to("file")
    (parent / "secret").write_text("secret")
    scratch.chmod(0o755)
    parent.chmod(0o700)
    needed.chmod(0o700 if closed == "itself" else 0o755)
    script = "\n".join(support._open_up(needed))
    read = f"setpriv --reuid 12345 --clear-groups cat {needed}/link; setpriv --reuid 12345 ls {needed} {parent}"
    done = subprocess.run(
        [*support.MOUNT_NAMESPACE, "sh", "-euc", f"{script}\n{read}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"hello{parent}:\nneeded\n\n{needed}:\nfile\nlink\nsub\n"
    assert (parent.stat().st_mode & 0o777, os.listdir(needed / "sub")) == (0o700, [])


@pytest.mark.fuse
def test_as_user_can_open_the_fuse_device(as_user: AsUser) -> None:
    before = os.stat("/dev/fuse").st_mode
    as_user.python("open('/dev/fuse', 'r+b', 0).close()", fuse=True)
    assert os.stat("/dev/fuse").st_mode == before


@pytest.mark.userns
def test_as_user_can_make_a_user_namespace(as_user: AsUser) -> None:
    command = [*support.USER_NAMESPACE, "--pid", "--fork", "--mount-proc", "id", "-u"]
    assert as_user.run(command).stdout == "0\n"


INNER = """
import pytest, warnings

@pytest.mark.needs("no-such-program")
def test_marked(): pass

def test_skipped(): pytest.skip("no reason")

def test_elsewhere(): pytest.skip("not applicable: as root")

@pytest.mark.xfail
def test_known(): assert False

def test_warns(): warnings.warn("w")
"""


@pytest.mark.parametrize(
    ("require_all", "counts"),
    [("", "1 failed, 4 skipped, 1 xfailed"), ("1", "2 failed, 1 skipped, 1 xfailed, 2 errors")],
)
def test_warnings_fail_and_so_do_skips_where_all_is_required(scratch: Path, require_all: str, counts: str) -> None:
    (scratch / "conftest.py").write_text("from tests.conftest import *\n")
    (scratch / "test_inner.py").write_text(INNER)
    (scratch / "test_import.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    options = ["-p", "no:cacheprovider", "-c", str(support.REPO / "pyproject.toml"), "--rootdir", str(scratch)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors", str(scratch)],
        cwd=support.REPO,
        env={**os.environ, "UNIONFS_REQUIRE_ALL": require_all},
        capture_output=True,
        text=True,
    )
    assert counts in done.stdout, done.stdout
    assert "lacks no-such-program" in done.stdout
    assert ("UNIONFS_REQUIRE_ALL is set" in done.stdout) == bool(require_all)
