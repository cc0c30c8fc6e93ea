"""Real programs on a real mount: what they leave there must be what they leave on a plain directory.

The mount is made by the command `unionfs mount`. What a program finds is scattered over three layers.

Every engine serves a history, a database, a build and an archive (`every_engine`). The best that this machine can use
serves the rest as well (`best_engine`): it takes long, and asks no engine for more than its conformance suite does.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests import support
from unionfs.errors import MountError
from unionfs.mount.engine import engine_names, get_engine
from unionfs.testing.operations import ACL, CAPABILITY
from unionfs.testing.oracle import differences, snapshot
from unionfs.testing.surfaces import HostSurface, TreeSurface
from unionfs.union.fs import UnionFS

pytestmark = pytest.mark.fuse

ROOT = os.geteuid() == 0
OLD_NS = 1_234_567_890_123_456_789
QUIET = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C", "PYTHONPATH": str(support.REPO)}


def run(*command: object, cwd: Path | None = None, check: bool = True, timeout: float = 90) -> str:
    """What the program prints; it must succeed."""
    done = subprocess.run(
        [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **QUIET},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
    )
    assert done.returncode == 0 or not check, f"{command}: status {done.returncode}\n{done.stdout}"
    return done.stdout


class Stage:
    """Three layers and an upper below `top`, mounted at `mnt` by the command."""

    def __init__(self, top: Path, engine: str) -> None:
        self.engine = engine
        self.lowers = [top / name for name in ("high", "middle", "low")]
        self.upper, self.work, self.mnt, self.plain = top / "up", top / "work", top / "mnt", top / "plain"
        for directory in (*self.lowers, self.upper, self.mnt, self.plain):
            directory.mkdir()

    def scatter(self, tree: Path, at: str) -> None:
        """Spread what is in `tree` over the layers, below `at`: directories in all, every other object in one."""
        count = 0
        for directory, names, others in os.walk(tree):
            names.sort()
            inside = os.path.join(at, os.path.relpath(directory, tree))
            for layer in self.lowers:
                (layer / inside).mkdir(parents=True, exist_ok=True)
                shutil.copystat(directory, layer / inside)
            for name in sorted(others):
                source = os.path.join(directory, name)
                shutil.copy2(source, self.lowers[count % 3] / inside / name, follow_symlinks=False)
                count += 1
        for directory, _, _ in os.walk(tree, topdown=False):
            for layer in self.lowers:
                shutil.copystat(directory, layer / at / os.path.relpath(directory, tree))

    def mount(self) -> Path:
        layers = [word for layer in self.lowers for word in ("--lower", layer)]
        command = ["mount", self.mnt, *layers, "--upper", self.upper, "--work", self.work, "--engine", self.engine]
        run(sys.executable, "-m", "unionfs.cli", *command)
        return self.mnt

    def umount(self) -> None:
        run(sys.executable, "-m", "unionfs.cli", "umount", self.mnt)

    def api(self) -> UnionFS:
        """The same union in this process, after `umount`."""
        return UnionFS(lower=self.lowers, upper=self.upper, work=self.work)


every_engine = pytest.mark.parametrize("stage", engine_names(), indirect=True)
best_engine = pytest.mark.parametrize("stage", [support.best_engine()], indirect=True)


@pytest.fixture
def stage(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Stage]:
    try:
        get_engine(request.param)
    except MountError as error:
        support.lacks(str(error))
    stage = Stage(scratch, request.param)
    yield stage
    if os.path.ismount(stage.mnt):
        stage.umount()


def same(reference: Path, subject: Path, *, but: Iterable[bytes] = ()) -> None:
    """Two trees must be equal in everything that can be seen. The times of these directories need not."""
    wanted, got = snapshot(HostSurface(reference)), snapshot(HostSurface(subject))
    for tree in (wanted, got):
        for path in but:
            tree[path].facts.pop("mtime")
    assert not differences(wanted, got)


def rich(top: Path) -> Path:
    """A tree with one of everything that a program may have to copy."""
    for name in ("plain", "empty", "deep/er/and/deeper", "closed"):
        (top / name).mkdir(parents=True)
    rng = Random(1)
    for i in range(60):
        (top / f"plain/{i}").write_bytes(rng.randbytes(rng.choice((0, 1, 4096, 70_000))))
    (top / "deep/er/and/deeper/leaf").write_text("leaf")
    os.link(top / "plain/1", top / "deep/linked")
    os.link(top / "plain/1", top / "linked too")
    os.symlink("plain/1", top / "symlink")
    os.symlink("nowhere", top / "dangling")
    Path(os.fsdecode(os.fsencode(top) + b"/not \xff utf-8\n")).write_text("odd")
    (top / ("n" * 255)).write_text("long")
    with open(top / "sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"island")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(top / "socket"))
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o4755)
    os.setxattr(top / "plain/2", "user.colour", b"blue\0green")
    os.setxattr(top / "deep", "user.colour", b"brown")
    os.setxattr(top / "plain/3", "system.posix_acl_access", ACL)
    os.setxattr(top / "deep/er", "system.posix_acl_default", ACL)
    if ROOT:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 200))
        os.chown(top / "plain/4", 1234, 4321)
        os.chown(top / "symlink", 12, 34, follow_symlinks=False)
        os.setxattr(top / "plain/5", "security.capability", CAPABILITY)
        os.setxattr(top / "plain/6", "trusted.secret", b"s")
        (top / "closed").chmod(0)
    (top / "empty").chmod(0o1777)
    for number, (folder, _, others) in enumerate(os.walk(os.fsencode(top), topdown=False)):
        for other in others:
            os.utime(os.path.join(folder, other), ns=(OLD_NS, OLD_NS + number), follow_symlinks=False)
        os.utime(folder, ns=(OLD_NS, OLD_NS - number))
    return top


@every_engine
@pytest.mark.needs("git")
def test_git(stage: Stage) -> None:
    seed = stage.plain / "seed"
    run("git", "init", "-q", "-b", "main", seed)
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "gc.auto=0"]
    for turn in range(4):
        for name in ("a", "src/b", "src/deep/c"):
            (seed / name).parent.mkdir(parents=True, exist_ok=True)
            (seed / name).write_text(f"{name} {turn}\n" * 50)
        run("git", "-C", seed, "add", "-A")
        run("git", "-C", seed, *who, "commit", "-q", "-m", f"turn {turn}")
    bare = stage.plain / "bare.git"
    run("git", "clone", "-q", "--bare", "--no-local", seed, bare)
    run("git", "-C", bare, "unpack-objects", "-q", check=False)
    stage.scatter(bare, "srv/bare.git")
    mnt = stage.mount()
    there, clone = mnt / "srv/bare.git", mnt / "clone"
    run("git", "-C", there, "config", "--add", "safe.directory", "*")
    run("git", "-C", there, "fsck", "--full", "--strict")

    run("git", "clone", "-q", there, clone)
    assert run("git", "-C", clone, "status", "--porcelain") == ""
    run("git", "-C", clone, "checkout", "-q", "-b", "topic")
    (clone / "src/new").write_text("new\n")
    run("git", "-C", clone, "mv", "a", "renamed")
    run("git", "-C", clone, "rm", "-q", "src/deep/c")
    run("git", "-C", clone, "add", "-A")
    run("git", "-C", clone, *who, "commit", "-q", "-m", "topic")
    run("git", "-C", clone, "checkout", "-q", "main")
    assert sorted(path.name for path in clone.iterdir()) == [".git", "a", "src"]
    (clone / "a").write_text("other\n")
    run("git", "-C", clone, *who, "commit", "-q", "-am", "main goes on")
    (clone / "a").write_text("stashed\n")
    run("git", "-C", clone, *who, "stash", "-q")
    run("git", "-C", clone, *who, "merge", "-q", "-m", "merged", "topic", check=False)
    run("git", "-C", clone, "checkout", "-q", "-f", "topic")
    run("git", "-C", clone, *who, "rebase", "-q", "HEAD~1")
    run("git", "-C", clone, "push", "-q", "origin", "main", "topic")
    for repository in (clone, there):
        run("git", "-C", repository, "gc", "-q", "--prune=now")
        run("git", "-C", repository, "fsck", "--full", "--strict")
    assert run("git", "-C", clone, "status", "--porcelain") == ""
    log = run("git", "-C", there, "log", "--format=%s", "topic").split("\n")
    assert log[:5] == ["topic", "turn 3", "turn 2", "turn 1", "turn 0"]

    stage.umount()
    stage.mount()
    run("git", "-C", there, "fsck", "--full", "--strict")
    assert run("git", "-C", clone, "status", "--porcelain") == ""
    assert run("git", "-C", clone, "rev-parse", "origin/topic") == run("git", "-C", there, "rev-parse", "topic")


WRITER = """
import sqlite3, sys
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
assert db.execute("pragma journal_mode").fetchone() == ("wal",)
for i in range(count):
    db.execute("begin immediate")
    db.execute("insert into t values (?, ?, ?)", (who, i, "x" * (i % 3000)))
    if i % 10 == 9:
        db.execute("update t set text = text || '!' where who = ? and n = ?", (who, i - 5))
        db.execute("delete from t where who = ? and n = ?", (who, i - 9))
    db.execute("commit")
db.close()
"""


@every_engine
def test_sqlite_in_wal_mode_with_two_writers(stage: Stage) -> None:
    with sqlite3.connect(stage.plain / "base.db") as db:
        db.execute("create table t (who text, n integer, text text)")
        db.execute("create index i on t (who, n)")
        db.executemany("insert into t values ('base', ?, ?)", [(i, "y" * 100) for i in range(500)])
    db.close()
    stage.scatter(stage.plain, "var/lib")
    path = stage.mount() / "var/lib/base.db"
    db = sqlite3.connect(path)
    assert db.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    command = [sys.executable, "-c", WRITER, os.fspath(path)]
    writers = [subprocess.Popen([*command, who, "150"], stderr=subprocess.PIPE, text=True) for who in ("a", "b")]
    for writer in writers:
        _, said = writer.communicate(timeout=80)
        assert writer.returncode == 0, said
    wanted = [("a", 135), ("b", 135), ("base", 500)]

    def check(db: sqlite3.Connection) -> None:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        assert db.execute("select who, count(*) from t group by who order by who").fetchall() == wanted

    check(db)
    db.close()
    stage.umount()
    db = sqlite3.connect(stage.upper / "var/lib/base.db")
    check(db)
    db.close()


def _wheel(directory: Path) -> Path:
    """A package with a module, data and a command, as a wheel made by hand."""
    wheel = directory / "guest-1.0-py3-none-any.whl"
    info = "guest-1.0.dist-info"
    content = {
        "guest/__init__.py": "def main():\n    print('hello from the guest')\n",
        **{f"guest/data/{i}.txt": "text" * i for i in range(200)},
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nguest = guest:main\n",
    }
    record = "".join(f"{name},,\n" for name in (*content, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (*content.items(), (f"{info}/RECORD", record)):
            archive.writestr(name, text)
    return wheel


@best_engine
def test_pip_into_a_venv(stage: Stage) -> None:
    wheel = _wheel(stage.plain)
    mnt = stage.mount()
    # With a pip of its own it takes half a minute more, and shows no more.
    run(sys.executable, "-m", "venv", "--without-pip", mnt / "venv")
    pip = [sys.executable, "-m", "pip", "--python", mnt / "venv/bin/python", "--isolated"]
    run(*pip, "install", "-q", "--no-index", wheel)
    assert run(mnt / "venv/bin/guest") == "hello from the guest\n"
    run(*pip, "check")
    stage.umount()
    # What was installed becomes a layer; it is removed from there.
    with stage.api() as fs:
        frozen = fs.commit(message="venv").path
    stage.lowers.insert(0, Path(frozen))
    stage.mount()
    assert run(mnt / "venv/bin/guest") == "hello from the guest\n"
    run(*pip, "uninstall", "-q", "-y", "guest")
    assert run(mnt / "venv/bin/python", "-c", "import guest", check=False).endswith("No module named 'guest'\n")
    stage.umount()
    with stage.api() as fs:
        gone = {change.path.rpartition("/")[2] for change in fs.diff() if change.kind == "deleted"}
    assert gone >= {"guest", "guest-1.0.dist-info"}
    assert (Path(frozen) / "venv/bin/guest").exists()


@best_engine
@pytest.mark.network
def test_pip_from_the_network(stage: Stage) -> None:
    mnt = stage.mount()
    run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", mnt / "site", "six")
    code = f"import sys; sys.path.insert(0, {str(mnt / 'site')!r}); import six; print(six.__file__)"
    assert run(sys.executable, "-c", code) == f"{mnt}/site/six.py\n"


MAKEFILE = """\
objects := $(patsubst %.c,%.o,$(wildcard src/*.c))
all: program
program: main.o libparts.so
\t$(CC) -o $@ main.o -L. -lparts -Wl,-rpath,'$$ORIGIN'
libparts.so: $(objects)
\t$(CC) -shared -o $@ $^
%.o: %.c include/parts.h
\t$(CC) -fPIC -O1 -Iinclude -c -o $@ $<
clean:
\trm -f program libparts.so main.o src/*.o
"""


@every_engine
@pytest.mark.needs("gcc", "make")
def test_gcc_and_make(stage: Stage) -> None:
    count = 9
    source = stage.plain
    (source / "src").mkdir()
    (source / "include").mkdir()
    (source / "Makefile").write_text(MAKEFILE)
    parts = [f"part{i}" for i in range(count)]
    (source / "include/parts.h").write_text("#define BASE 1\n" + "".join(f"int {part}(void);\n" for part in parts))
    for i, part in enumerate(parts):
        text = f'#include "parts.h"\nint {part}(void) {{ return BASE * {i}; }}\n'
        (source / f"src/{part}.c").write_text(text)
    total = " + ".join(f"{part}()" for part in parts)
    (source / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    stage.scatter(source, "project")
    project = stage.mount() / "project"
    run("make", "-j4", cwd=project)
    assert run(project / "program") == f"{sum(range(count))}\n"
    assert run("make", "-q", cwd=project) == ""
    (project / "include/parts.h").write_text((project / "include/parts.h").read_text().replace("BASE 1", "BASE 10"))
    run("make", "-j4", cwd=project)
    assert run(project / "program") == f"{10 * sum(range(count))}\n"
    run("strip", "program", cwd=project)
    shutil.copy2(project / "program", project / "again")
    assert run(project / "again") == f"{10 * sum(range(count))}\n"
    run("make", "clean", cwd=project)
    (project / "again").unlink()
    stage.umount()
    with stage.api() as fs:
        assert [(change.path, change.kind) for change in fs.diff() if change.what != {"times"}] == [
            ("/project/include/parts.h", "changed")
        ]


@every_engine
@pytest.mark.needs("tar")
def test_tar_round_trip(stage: Stage) -> None:
    source = rich(stage.plain)
    options = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse", "--format=posix"]
    archive, again = stage.upper.parent / "a.tar", stage.upper.parent / "b.tar"
    options = [*options, "--warning=no-file-ignored"]
    run("tar", "-C", source, *options, "-cf", archive, ".")
    (source / "socket").unlink()  # tar leaves sockets out.
    os.utime(source, ns=(OLD_NS, OLD_NS))
    mnt = stage.mount()
    (mnt / "in").mkdir()
    run("tar", "-C", mnt / "in", *options, "-xpf", archive)
    same(source, mnt / "in", but=[b""])
    run("tar", "-C", mnt / "in", *options, "--compare", "-f", archive)
    run("tar", "-C", mnt / "in", *options, "-cf", again, ".")
    (stage.upper.parent / "out").mkdir()
    run("tar", "-C", stage.upper.parent / "out", *options, "-xpf", again)
    same(source, stage.upper.parent / "out", but=[b""])


@best_engine
@pytest.mark.needs("rsync")
def test_rsync_in_and_out(stage: Stage) -> None:
    source = rich(stage.plain)
    first = stage.upper.parent / "first"
    shutil.copytree(source / "plain", first, symlinks=True)
    stage.scatter(first, "in/plain")  # Half of it is there already, in the layers, older.
    for layer in stage.lowers:
        for path in (layer / "in/plain").iterdir():
            path.write_bytes(path.read_bytes()[::-1] + b"old")
    for layer in stage.lowers[1:]:
        (layer / "in/not there").mkdir()
    (stage.lowers[2] / "in/not there/file").write_text("goes")
    mnt = stage.mount()
    options = ["-aHAX", "--sparse", "--numeric-ids", "--delete"]
    run("rsync", *options, f"{source}/", f"{mnt}/in/")
    same(source, mnt / "in")
    assert (mnt / "in/sparse").stat().st_blocks * 512 < 2 << 20
    assert run("rsync", *options, "-n", "--checksum", "--itemize-changes", f"{source}/", f"{mnt}/in/") == ""
    stage.umount()
    stage.mount()
    out = stage.upper.parent / "out"
    run("rsync", *options, f"{mnt}/in/", f"{out}/")
    same(source, out)
    assert (out / "sparse").stat().st_blocks * 512 < 2 << 20
    # In place, over files of the layers.
    stage.umount()
    with stage.api() as fs:
        stage.lowers.insert(0, Path(fs.commit().path))
    stage.mount()
    (source / "plain/7").write_bytes(b"another\n" * 10_000)
    (source / "plain/8").unlink()
    run("rsync", *options, "--no-sparse", "--inplace", "--no-whole-file", f"{source}/", f"{mnt}/in/")
    same(source, mnt / "in")


@best_engine
@pytest.mark.needs("cp", "find", "rm", "diff")
def test_file_utilities(stage: Stage) -> None:
    source = rich(stage.plain)
    stage.scatter(source / "plain", "low/plain")
    stage.scatter(source / "deep", "low/deep")
    mnt = stage.mount()
    run("cp", "-a", source, mnt / "copied")
    same(source, mnt / "copied")
    run("cp", "-a", mnt / "copied", mnt / "again")
    same(source, mnt / "again")
    listed = run("find", ".", "-printf", "%p %y %i\\n", cwd=mnt / "copied").splitlines()
    names = {line.split(" ")[0] for line in listed if "\n" not in line}
    assert {"./plain/1", "./fifo", "./deep/er/and/deeper/leaf"} <= names
    assert run("find", mnt / "low", "-type", "f", "-name", "leaf") == f"{mnt}/low/deep/er/and/deeper/leaf\n"
    same_inode = run("find", ".", "-samefile", "plain/1", cwd=mnt / "copied").splitlines()
    assert sorted(same_inode) == ["./deep/linked", "./linked too", "./plain/1"]
    run("mv", mnt / "low/plain", mnt / "low/moved")
    run("diff", "-r", source / "plain", mnt / "low/moved")
    run("cp", "--reflink=auto", "--sparse=always", mnt / "copied/sparse", mnt / "sparse")
    assert (mnt / "sparse").read_bytes() == (source / "sparse").read_bytes()
    (source / "closed").chmod(0o700)
    copied = shutil.copytree(mnt / "copied/plain", mnt / "by python", symlinks=True)
    run("diff", "-r", source / "plain", copied)
    run("sed", "-i", "s/leaf/fruit/", mnt / "low/deep/er/and/deeper/leaf")
    assert (mnt / "low/deep/er/and/deeper/leaf").read_text() == "fruit"
    run("rm", "-rf", mnt / "copied", mnt / "again", mnt / "low", mnt / "by python", mnt / "sparse")
    assert os.listdir(mnt) == []
    stage.umount()
    stage.mount()
    assert os.listdir(mnt) == []


WORKER = """
import os, random, sys, time
from unionfs.testing.operations import Operations
from unionfs.testing.oracle import Duel
from unionfs.testing.surfaces import HostSurface
plain, subject, engine, seed, seconds = sys.argv[1:]
left_out = set()
if engine == "fusepy":
    # The kernel takes it off before libfuse 2 is asked, also where a default ACL decides.
    os.umask(0)
    # libfuse 2 passes neither renameat2's flags nor fallocate on, and finds open files by their paths.
    left_out = {"open", "pread", "pwrite", "ftruncate", "punch", "fstat", "close"}
duel = Duel(HostSurface(plain), HostSurface(subject))
operations = Operations(random.Random(int(seed)), duel.reference, root=bool(int(%d)), remounts=False)
end, steps = time.monotonic() + float(seconds), 0
while time.monotonic() < end:
    op = operations.next()
    if op[0] in left_out or (left_out and op[0] == "rename" and op[3]):
        continue
    duel.step(op)
    steps += 1
    if steps %% 200 == 0:
        duel.compare()
duel.compare()
duel.close()
print(steps)
"""


@best_engine
@pytest.mark.slow
def test_several_processes_at_once(stage: Stage) -> None:
    workers = 3
    for worker in range(workers):
        tree = stage.plain / f"w{worker}"
        for name in ("a/a", "a/b", "b/c", "c/d/a"):
            (tree / name).mkdir(parents=True)
        for i, name in enumerate(("a/a/b", "a/b/a", "b/a", "c/a", "c/d/a/d", "d")):
            (tree / name).write_bytes(b"lower %d;" % i * 1000)
        for directory, _, names in os.walk(tree, topdown=False):
            for path in (*(os.path.join(directory, name) for name in names), directory):
                os.utime(path, ns=(OLD_NS, OLD_NS))
        stage.scatter(tree, tree.name)
    mnt = stage.mount()
    command = [sys.executable, "-c", WORKER % ROOT]
    running = [
        subprocess.Popen(
            [*command, stage.plain / f"w{worker}", mnt / f"w{worker}", stage.engine, str(worker), "10"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET},
        )
        for worker in range(workers)
    ]
    for process in running:
        told, said = process.communicate(timeout=100)
        assert process.returncode == 0, said[:1500] + "\n…\n" + said[-500:]
        assert int(told) > 100
    seen = [snapshot(HostSurface(mnt / f"w{worker}")) for worker in range(workers)]
    stage.umount()
    with stage.api() as fs:
        merged = snapshot(TreeSurface(fs.tree))
        for worker in range(workers):
            wanted = snapshot(HostSurface(stage.plain / f"w{worker}"))
            top = b"w%d" % worker
            in_process = {
                path[len(top) + 1 :]: found
                for path, found in merged.items()
                if path == top or path.startswith(top + b"/")
            }
            assert not differences(wanted, in_process)
            assert {path: found.identity[1] for path, found in seen[worker].items()} == {
                path: found.identity[1] for path, found in in_process.items()
            }
