"""What a commit records and what it leaves out, points of a history, and that the same tree is the same image."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import support
from tests.storehouse import layers_on_disk, lines
from unionfs import Container, Image, InUseError, NotFoundError, Store, UnionError

EPOCH = "1700000000"


def wait_until(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def test_what_a_commit_records(store: Store, base: Image) -> None:
    now = dt.datetime(2026, 11, 21, 7, 0, 0, 123000, dt.UTC)
    with store.create("base", "job", ["sh", "-c", "make all"]) as job:
        job.fs.write_text("/made", "x")
        image = job.commit(
            "job:1",
            author="Ann <ann@example.org>",
            message="a build\nof two lines",
            created=now,
            changes=['CMD ["/made", "--now"]', "ENV A=1 B='two words'", "WORKDIR /srv", "LABEL kind=test", "EXPOSE 80"],
        )
        run = image.config.run
        assert run.cmd == ("/made", "--now")
        assert set(run.env) >= {"A=1", "B=two words"}
        assert (run.working_dir, run.labels["kind"], run.exposed_ports) == ("/srv", "test", ("80/tcp",))
        line, first = image.history()
        assert (line.created, line.author) == (now, "Ann <ann@example.org>")
        assert (line.comment, line.created_by) == ("a build\nof two lines", "sh -c make all")
        assert line.id == image.layers[0].id
        assert line.names == ("job:1",)
        assert line.size > 0
        assert first.id == base.layers[0].id
        assert image.created == now
        assert image.size == line.size + first.size
        assert job.image == image
        assert image.config.diff_ids == (first.diff_id, line.diff_id)
        # And the next goes on from it.
        job.fs.write_text("/more", "x")
        later = job.commit("job:2", changes=["ENV C=3"], created_by="by hand")
        assert later.config.run.cmd == ("/made", "--now")
        assert set(later.config.run.env) >= {"A=1", "B=two words", "C=3"}
        assert later.config.run.labels["kind"] == "test"
        assert [line.created_by for line in later.history()] == ["by hand", "sh -c make all", ""]
        assert image.config.run.env == run.env
    manifest = json.loads(Path(f"{store.path}/blobs/sha256/{later.digest[7:]}").read_bytes())
    assert [layer["digest"] for layer in manifest["layers"]] == list(later.config.diff_ids)
    assert manifest["config"]["digest"] == later.id
    assert manifest["annotations"]["org.opencontainers.image.base.digest"] == image.digest


def test_changes_of_one_commit_are_one(store: Store, web: Container) -> None:
    web.fs.write_text("/x", "")
    image = web.commit("x", changes=['CMD ["-l"]', 'ENTRYPOINT ["/bin/ls"]'])
    assert (image.config.run.entrypoint, image.config.run.cmd) == (("/bin/ls",), ("-l",))


def test_a_wrong_change_is_told_before_anything_happens(store: Store, web: Container, source: Path) -> None:
    web.fs.write_text("/x", "")
    before = layers_on_disk(store)
    for change in ("NONSENSE x", "ENV", "", "CMD", "EXPOSE abc"):
        with pytest.raises(UnionError) as caught:
            web.commit("x", changes=[change])
        assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(UnionError):
            store.import_(source, "y", changes=[change])
    with pytest.raises(UnionError):
        web.commit("Not A Name")
    assert layers_on_disk(store) == before
    assert web.points() == []
    assert [image.names for image in store.images()] == [["base:latest"]]


def test_a_commit_without_changes_is_an_empty_layer(store: Store, base: Image, web: Container) -> None:
    image = web.commit("same", message="nothing", changes=["ENV A=1"])
    assert image != base
    assert [layer.id for layer in image.layers] == [layer.id for layer in base.layers]
    entries = image.config.history
    assert [entry.empty_layer for entry in entries] == [False, True]
    line = image.history()[0]
    assert (line.id, line.comment, line.size) == (None, "nothing", 0)
    assert lines(store.diff("base", "same")) == []
    # What changes and changes back is none either, wherever the upper has it.
    write_again(web, "/etc/motd")
    again = web.commit("again")
    assert [layer.id for layer in again.layers] == [layer.id for layer in base.layers]
    # The next one stands on the image all the same.
    web.fs.write_text("/x", "")
    last = web.commit("last")
    assert [line.id is None for line in last.history()] == [False, True, True, False]
    assert lines(store.diff("base", "last")) == ["A /x"]


def write_again(container: Container, path: str) -> None:
    """The same bytes, and the same time."""
    fs = container.fs
    st = fs.stat(path)
    fs.write_bytes(path, fs.read_bytes(path))
    fs.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def test_bytes_written_again_are_no_change(store: Store, base: Image, web: Container) -> None:
    fs = web.fs
    write_again(web, "/etc/motd")
    st = fs.stat("/etc/conf.d")
    fs.rename("/etc/conf.d/one", "/etc/conf.d/tmp")
    fs.rename("/etc/conf.d/tmp", "/etc/conf.d/one")
    fs.utime("/etc/conf.d", ns=(st.st_atime_ns, st.st_mtime_ns))
    fs.chmod("/bin/tool", 0o700)
    fs.chmod("/bin/tool", 0o755)
    fs.write_text("/gone", "")
    fs.remove("/gone")
    fs.write_text("/real", "change")
    assert lines(web.diff()) == ["A /real"]
    image = web.commit("x")
    held = sorted(
        os.path.relpath(os.path.join(at, name), f"{store.path}/layers/{image.layers[0].id}/diff")
        for at, _, names in os.walk(f"{store.path}/layers/{image.layers[0].id}/diff")
        for name in names
    )
    assert held == ["real"]
    with image.open() as there:
        assert there.read_text("/etc/motd") == "hello\n"
        assert sorted(there.listdir("/etc/conf.d")) == ["one", "two"]


def test_whiteouts_that_hide_nothing_are_left_out(store: Store, web: Container) -> None:
    fs = web.fs
    fs.mkdir("/new")
    fs.write_text("/new/a", "a")
    web.fork("side").remove()  # Freezes what there is.
    fs.remove("/new/a")
    fs.rmdir("/new")
    fs.remove("/etc/motd")
    image = web.commit("x")
    (layer,) = [layer for layer in image.layers if layer.parent is not None]
    held = {name for _, names, files in os.walk(f"{store.path}/layers/{layer.id}/diff") for name in (*names, *files)}
    assert held == {"etc", "motd"}
    assert lines(store.diff("base", "x")) == ["D /etc/motd"]
    web.close()
    assert not web.fs.exists("/new")
    assert web.history()[0].id == layer.id


def test_diff_of_any_two_points(store: Store, base: Image, web: Container) -> None:
    web.fs.write_text("/a", "1")
    web.commit("one")
    web.fs.write_text("/a", "2")
    web.fs.rename("/etc/conf.d", "/etc/d")
    web.commit("two")
    web.fs.remove("/bin/t")
    found = {change.path: change for change in store.diff("one", "two")}
    assert sorted(found) == ["/a", "/etc/conf.d", "/etc/d", "/etc/d/one", "/etc/d/two"]
    assert found["/a"].what >= {"data"}
    assert found["/etc/d"].renamed_from == "/etc/conf.d"
    back = {change.path: change.kind for change in store.diff("two", "one")}
    assert back == {
        "/a": "changed", "/etc/conf.d": "added", "/etc/conf.d/one": "added", "/etc/conf.d/two": "added",
        "/etc/d": "deleted",
    }  # fmt: skip
    assert lines(store.diff("base", "web", "/bin")) == ["D /bin/t"]
    assert lines(store.diff("two", "two~0")) == []
    assert lines(store.diff("base~1", "base"))[0] in ("C /", "A /bin")
    assert lines(store.image("two").diff("one")) == lines(store.diff("one", "two"))
    with pytest.raises(FileNotFoundError):
        lines(store.diff("one", "two", "/none"))
    # Two images that have nothing to do with each other.
    other = store.import_(web_source(store), "other")
    changes = lines(store.diff("base", other))
    assert "D /bin" in changes
    assert "A /alone" in changes


def web_source(store: Store) -> Path:
    top = Path(store.path).parent / "web_source"
    top.mkdir()
    (top / "alone").write_text("")
    return top


def test_the_state_before_a_rollback_is_kept(store: Store, base: Image, web: Container) -> None:
    web.fs.write_text("/a", "1")
    web.rollback("base")
    assert not web.fs.exists("/a")
    assert lines(web.diff()) == []
    layer = web.points()[1].layer
    assert [point.why for point in web.points()] == ["rollback", "rollback"]
    web.fs.write_text("/b", "")
    store.gc()
    web.rollback(layer)
    assert web.fs.read_text("/a") == "1"
    assert not web.fs.exists("/b")
    web.rollback("web~0")
    assert web.fs.read_text("/a") == "1"
    image = web.commit("back")
    assert lines(store.diff("base", "back")) == ["A /a"]
    web.remove()
    store.gc()
    assert len(layers_on_disk(store)) == 2
    assert image.history()[0].id in layers_on_disk(store)


@pytest.mark.fuse
def test_what_the_kernel_has_gathered_is_committed(store: Store, base: Image, web: Container, scratch: Path) -> None:
    (scratch / "mnt").mkdir()
    with web.mount(scratch / "mnt", "devfuse", sole=True, passthrough=False):
        with open(scratch / "mnt/log", "wb", buffering=0) as log:
            log.writelines(b"%05d\n" % i for i in range(100))
            assert [change.after.st_size for change in web.diff("/log") if change.after] == [600]
            log.write(b"the end\n")
            image = web.commit()
    with image.open() as fs:
        assert fs.read_bytes("/log").endswith(b"00099\nthe end\n")


@pytest.mark.root
@pytest.mark.overlay
def test_the_kernels_mount_of_a_container(store: Store, base: Image, web: Container, scratch: Path) -> None:
    (scratch / "mnt").mkdir()
    with web.mount(scratch / "mnt", "kernel"):
        (scratch / "mnt/new").write_text("x")
        assert lines(web.diff()) == ["A /new"]
        for refused in (web.commit, web.fork, lambda: web.rollback("base")):
            with pytest.raises(InUseError, match="by the kernel's overlayfs: unmount it first"):
                refused()
    assert lines(web.commit().diff(base)) == ["A /new"]


def test_what_is_thrown_away_at_a_rollback_is_gone(store: Store, base: Image, web: Container) -> None:
    web.fs.write_text("/a", "1")
    web.fork("try")
    web.fs.write_text("/b", "2")
    with web.fs.open("/b", "r+") as opened:
        web.rollback("web~0", discard=True)
        opened.write("3")
        opened.seek(0)
        assert opened.read() == "3"
    assert web.fs.read_text("/a") == "1"
    assert not web.fs.exists("/b")
    before = set(layers_on_disk(store))
    for _ in range(3):
        web.fs.write_text("/c", "")
        web.rollback("web~1", discard=True)
    assert lines(web.diff()) == ["A /a"]
    assert set(layers_on_disk(store)) == before


def test_a_container_is_no_point_to_roll_back_to(store: Store, web: Container) -> None:
    store.create("base", "other")
    with pytest.raises(UnionError, match="is a container"):
        web.rollback("other")
    with pytest.raises(NotFoundError):
        web.rollback("none")
    assert web.points() == []


def test_forks_leave_each_other_alone(store: Store, web: Container) -> None:
    web.fs.write_text("/a", "1")
    other = web.fork("other")
    assert other.name == "other"
    web.fs.write_text("/a", "2")
    with other:
        assert other.fs.read_text("/a") == "1"
        other.fs.write_text("/a", "3")
        assert web.fs.read_text("/a") == "2"
        assert lines(other.diff()) == lines(web.diff()) == ["A /a"]
    third = store.create("other")
    with third:
        assert third.fs.read_text("/a") == "3"
    web.remove()
    other.remove()
    store.gc()
    with third:
        assert third.fs.read_text("/a") == "3"


def test_open_files_stay_open(store: Store, base: Image, web: Container) -> None:
    fs = web.fs
    with fs.open("/log", "w+") as log, fs.open("/etc/motd") as motd:
        log.write("one\n")
        log.flush()
        one = web.commit("one")
        log.write("two\n")
        log.flush()
        two = web.commit("two")
        log.write("three\n")
        log.flush()
        web.rollback("base")
        assert not fs.exists("/log")
        log.write("four\n")
        log.flush()
        log.seek(0)
        assert log.read() == "one\ntwo\nthree\nfour\n"
        assert motd.read() == "hello\n"
    with one.open() as there:
        assert there.read_text("/log") == "one\n"
    with two.open() as there:
        assert there.read_text("/log") == "one\ntwo\n"
    assert not fs.exists("/log")


PROGRAM = """
import os, sys, time
log = open("log", "a", buffering=1)
os.chdir("work")
n = 0
while not os.path.exists("../stop"):
    n += 1
    log.write(f"{n}\\n")
    with open("new", "w") as file:
        file.write(str(n))
    os.rename("new", "count")
    time.sleep(0.001)
print(n)
"""


@pytest.mark.fuse
def test_a_commit_while_programs_run_on_the_mount(store: Store, base: Image, web: Container, scratch: Path) -> None:
    mountpoint = scratch / "mnt"
    mountpoint.mkdir()
    with web.mount(mountpoint, "devfuse"):
        assert web.status == f"mounted at {mountpoint} (devfuse)"
        (mountpoint / "work").mkdir()
        program = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=mountpoint, stdout=subprocess.PIPE, text=True)
        wait_until(mountpoint / "work/count")
        images = []
        for i in range(5):
            images.append(web.commit(f"run:{i}"))
            time.sleep(0.05)
        side = web.fork("side")
        assert program.poll() is None
        (mountpoint / "stop").touch()
        out, _ = program.communicate(timeout=20)
        assert program.returncode == 0
        total = int(out)
        assert (mountpoint / "log").read_text() == "".join(f"{n}\n" for n in range(1, total + 1))
        web.rollback("run:0")
        assert not (mountpoint / "stop").exists()
        last = len((mountpoint / "log").read_text().splitlines())
        assert last <= total
    assert web.status == f"open in pid {os.getpid()}"
    seen = []
    for image in images:
        with image.open() as fs:
            whole = fs.read_text("/log").splitlines()
            assert whole == [str(n) for n in range(1, len(whole) + 1)]
            # The program writes the line first, then the count.
            assert int(fs.read_text("/work/count")) in (len(whole), len(whole) - 1)
            assert not fs.exists("/stop")
            seen.append(len(whole))
    assert seen == sorted(seen)
    assert seen[0] == last
    with side:
        assert len(side.fs.read_text("/log").splitlines()) >= seen[-1]


# The same tree has the same digest

BUILD = """
import os, sys, unionfs
with unionfs.Store(sys.argv[1]) as store:
    base = store.import_(sys.argv[2], "base", author="ann")
    with store.create("base", "c", ["make"]) as c:
        fs = c.fs
        for i in range(30):
            fs.write_text(f"/etc/{i * 7 % 30}", str(i))
            fs.setxattr(f"/etc/{i * 7 % 30}", f"user.{i}", b"v")
        fs.rename("/etc/conf.d", "/d")
        fs.chmod("/bin/tool", 0o700)
        fs.remove("/bin/t")
        image = c.commit("built", message="m", author="ann", changes=["ENV B=2 A=1", "LABEL z=1 a=2"])
    print(base.id, base.digest, image.id, image.digest, *(layer.chain_id for layer in image.layers))
"""


def other_pythons() -> dict[str, str]:
    """An interpreter of each other version here that the library supports, by its minor version and by its build."""
    siblings = Path(sys.base_prefix).resolve().parent.glob("3.*/bin/python3")  # as pyenv and CI's tool caches lay out
    known = [os.environ.get("UNIONFS_OTHER_PYTHON", ""), "/usr/bin/python3", *map(str, sorted(siblings))]
    known += [shutil.which(f"python3.{minor}") or "" for minor in range(11, 16)]
    found: dict[str, str] = {}
    for python in filter(None, known):
        code = "import sys; print('%d.%d.%d' % sys.version_info[:3]) if sys.version_info >= (3, 11) else None"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() not in ("", "None", platform.python_version()):
            found.setdefault(done.stdout.strip(), python)
    return found


def packages_for(version: str, target: Path) -> Path:
    """What the library imports, as that Python takes it."""
    minor = ".".join(version.split(".")[:2])
    command = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--python-version", minor, "--target", target]
    support.run_checked(sys.executable, *command, "attrs", "xxhash")
    return target


def built(python: str, source: Path, store: Path, seed: str, epoch: str = EPOCH, packages: Path | None = None) -> str:
    places = ":".join(str(place) for place in (support.REPO, packages) if place is not None)
    env = {**os.environ, "PYTHONPATH": places, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": epoch}
    command = [python, "-c", BUILD, str(store), str(source)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_the_same_tree_is_the_same_image(scratch: Path, source: Path) -> None:
    first = built(sys.executable, source, scratch / "one", "1")
    time.sleep(1.1)  # Times that somebody forgot would differ in seconds.
    again = scratch / "again"
    subprocess.run(["cp", "-a", source, again], check=True)
    assert built(sys.executable, again, scratch / "two", "2") == first
    assert built(sys.executable, again, scratch / "three", "2", str(int(EPOCH) + 1)) != first


@pytest.mark.network
def test_another_python_makes_the_same_image(scratch: Path, source: Path) -> None:
    others = other_pythons()
    if not others:
        pytest.skip("not applicable: no other Python from 3.11 on is on this machine (UNIONFS_OTHER_PYTHON)")
    first = built(sys.executable, source, scratch / "one", "1")
    for version, python in others.items():
        packages = packages_for(version, scratch / f"packages{version}")
        assert built(python, source, scratch / f"other{version}", "random", packages=packages) == first


def test_what_another_thread_opened_meanwhile_stays_open(
    store: Store, base: Image, web: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has it open; while somebody asks around for who does, another thread opens it."""
    monkeypatch.setattr("unionfs.images.container.ask", lambda *_: web.fs.write_text("/a", "1") and None)
    assert lines(web.diff()) == ["A /a"]
    monkeypatch.undo()
    assert web.status == f"open in pid {os.getpid()}"


def test_the_way_does_not_count(store: Store, base: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one step or in many, with snapshots between: the same change has the same diff ID, and is one layer."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    with store.create("base", "one") as one, store.create("base", "many") as many:
        one.fs.write_text("/a", "1")
        one.fs.remove("/bin/t")
        many.fs.remove("/bin/t")
        many.fork("x")
        many.fs.write_text("/a", "0")
        many.fs.write_text("/b", "0")
        many.fork("y")
        many.fs.remove("/b")
        many.fs.write_text("/a", "1")
        first, second = one.commit("one"), many.commit("many")
    assert first == second
    assert first.names == ["many:latest", "one:latest"]


def test_wrong_epochs_are_refused(store: Store, web: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    web.fs.write_text("/x", "")
    for wrong in ("soon", "-1", "1e9", "9" * 12):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UnionError, match="SOURCE_DATE_EPOCH"):
            web.commit("x")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert web.commit("x").created == dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
