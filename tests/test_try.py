"""``unionfs try``: exactly what the command changed, the host as it was, and what becomes of the changes."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import unionfs
from tests.support import REPO, AsUser
from tests.trying import UNIONFS, arguments, our_mounts, report, run, running, seen, start
from unionfs.run.idmap import subordinate

pytestmark = [pytest.mark.fuse]
root = pytest.mark.root


@pytest.fixture
def host(scratch: Path) -> Path:
    """A directory of the host that the commands may change; scratch directories are beside it."""
    directory = scratch / "host"
    directory.mkdir()
    return directory


# What the command sees and does


@root
@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 3"], 3, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["no-such-command"], 127, "unionfs: no-such-command: command not found"),
        (["/etc/passwd"], 126, "unionfs: /etc/passwd: Permission denied"),
        (["./without-shebang"], 5, ""),
        (["./without-interpreter"], 127, "unionfs: ./without-interpreter: its interpreter is not found"),
    ],
)
def test_the_exit_status_is_the_commands(scratch: Path, command: list[str], status: int, says: str) -> None:
    for name, text in (("without-shebang", "exit 5\n"), ("without-interpreter", "#!/no/such/program\n")):
        (scratch / name).write_text(text)
        (scratch / name).chmod(0o755)
    done = run(scratch, "--discard", "--", *command, check=status)
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line != "unionfs: nothing changed"] == ([says] if says else [])
    assert not (scratch / "state").exists()


@root
def test_the_diff_is_what_the_command_changed_and_the_host_is_untouched(scratch: Path, host: Path) -> None:
    for name in ("edited", "deleted", "directory/inside/file", "moved/a", "moved/b", "untouched"):
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text(name)
    before = seen(host)
    script = """
        echo more >> edited; rm deleted; rm -r directory; mv moved renamed; chmod 600 renamed/a
        mkdir new; echo new > new/file; touch untouched.tmp; rm untouched.tmp; cat untouched > /dev/null
        touch /run/unionfs-test-try; rm /run/unionfs-test-try
    """
    found = report(scratch, "--discard", "--", "sh", "-ec", script, cwd=host)
    changes = {os.path.relpath(change["path"], host): change for change in found["changes"]}
    assert {path: change["kind"] for path, change in changes.items()} == {
        "edited": "changed",
        "deleted": "deleted",
        "directory": "deleted",
        "moved": "deleted",
        "renamed": "added",
        "renamed/a": "added",
        "renamed/b": "added",
        "new": "added",
        "new/file": "added",
    }
    assert changes["edited"]["what"] == ["data", "times"]
    assert changes["renamed"]["renamed_from"] == str(host / "moved")
    assert (changes["edited"]["size_before"], changes["edited"]["size_after"]) == (6, 11)
    assert (found["outcome"], found["status"], found["layer"]) == ("discarded", 0, None)
    assert seen(host) == before
    assert our_mounts() == []
    assert not (scratch / "state").exists()


@root
def test_stdout_is_the_commands_and_the_diff_goes_to_stderr(scratch: Path, host: Path) -> None:
    (host / "old").mkdir()
    done = run(scratch, "--discard", "--", "sh", "-c", "echo out; mkdir d; touch d/a d/b; rmdir old", cwd=host)
    assert done.stdout == "out\n"
    assert done.stderr.splitlines() == [
        f"A {host}/d/  2 entries in it, 0 B",
        f"D {host}/old/",
        "unionfs: 3 added, 1 deleted, 0 B written",
        "unionfs: discarded; the host is as it was",
    ]
    listed = run(scratch, "--discard", "--all", "--", "sh", "-c", "mkdir d; touch d/a", cwd=host).stderr
    assert f"A {host}/d/a  0 B\n" in listed


@root
def test_names_cannot_act_on_the_terminal(scratch: Path, host: Path) -> None:
    done = run(scratch, "--discard", "--", "sh", "-c", r"touch $(printf 'a\033[31mb\377')", cwd=host)
    assert f"A {host}/a\\x1b[31mb\\xff  0 B" in done.stderr.splitlines()


@root
def test_the_running_systems_directories_are_real(scratch: Path) -> None:
    mark = Path(f"/dev/shm/unionfs-test-{os.getpid()}")
    try:
        found = report(scratch, "--discard", "--", "sh", "-c", f"echo seen > {mark}; cat /proc/$$/comm")
        assert mark.read_text() == "seen\n"
        assert found["changes"] == []
    finally:
        mark.unlink(missing_ok=True)
    for directory in ("/proc", "/dev", "/sys", "/run"):
        inside = run(scratch, "--discard", "--", "stat", "-c", "%d %i", directory).stdout.split()
        st = os.stat(directory)
        assert inside == [str(st.st_dev), str(st.st_ino)]


@root
def test_other_mounts_of_the_host_are_copied_on_write_too(scratch: Path, host: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", host], check=True)
    (host / "file").write_text("on another file system\n")
    done = run(scratch, "--discard", "--", "sh", "-c", "cat file; echo more >> file; cat file", cwd=host)
    assert done.stdout == "on another file system\n" * 2 + "more\n"
    assert (host / "file").read_text() == "on another file system\n"


@root
def test_the_view_does_not_hold_itself(scratch: Path) -> None:
    script = f"ls -A {scratch}/state 2>/dev/null; find {scratch} -name merged; ls {scratch}"
    done = run(scratch, "--discard", "--", "sh", "-c", script)
    assert done.stdout == "state\n"


@root
def test_the_host_never_sees_the_mount(scratch: Path) -> None:
    script = f"cat /proc/{os.getpid()}/mountinfo; echo; cat /proc/self/mountinfo"
    of_host, of_view = run(scratch, "--discard", "--", "sh", "-c", script).stdout.split("\n\n")
    assert our_mounts(of_host) == []
    assert [line.split()[4] for line in our_mounts(of_view)] == ["/"]


@root
def test_directory_environment_and_descriptors_are_kept(scratch: Path, host: Path) -> None:
    with (scratch / "log").open("w") as log:
        done = subprocess.run(
            arguments(
                scratch, "--discard", "--", "sh", "-c", f"pwd; echo $MARK; cat; echo log > /dev/fd/{log.fileno()}"
            ),
            cwd=host,
            env={**os.environ, "PYTHONPATH": str(REPO), "MARK": "kept"},
            input="input\n",
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[log.fileno()],
            check=True,
        )
    assert done.stdout == f"{host}\nkept\ninput\n"
    assert (scratch / "log").read_text() == "log\n"


@root
@pytest.mark.needs("git")
def test_git_works_in_the_view(scratch: Path, host: Path) -> None:
    script = """
        git init -q . && git config user.email a@b && git config user.name n && echo text > file && git add file
        git commit -qm first && git gc -q && git fsck --strict && git log --format=%s
    """
    assert run(scratch, "--discard", "--", "sh", "-ec", script, cwd=host).stdout == "first\n"
    assert list(host.iterdir()) == []


@root
def test_what_the_command_leaves_running_is_ended(scratch: Path, host: Path) -> None:
    nap = f"5{os.getpid()}.25"
    script = f"setsid sh -c 'trap \"\" TERM; sleep {nap}' & sleep {nap} & touch made"
    done = run(scratch, "--discard", "--", "sh", "-c", script, cwd=host)
    assert re.search(r"ended what the command left running: .*sleep \(\d+\)", done.stderr)
    assert running(nap) == []


# What becomes of the changes


@root
def test_a_kept_layer_goes_on_the_host_again_and_has_a_history(scratch: Path, host: Path) -> None:
    (host / "file").write_text("host\n")
    layer = scratch / "layer"
    done = run(
        scratch,
        "--keep",
        str(layer),
        "-m",
        "why",
        "--author",
        "me",
        "--",
        "sh",
        "-c",
        "echo kept >> file; mkdir d",
        cwd=host,
    )
    assert done.stderr.splitlines()[-1] == f"unionfs: kept as a layer: {layer}"
    assert (host / "file").read_text() == "host\n"
    with unionfs.UnionFS(lower=[layer, "/"]) as fs:
        assert fs.read_text(str(host / "file")) == "host\nkept\n"
        assert fs.isdir(str(host / "d"))
        top = fs.history()[0]
    assert (top.comment, top.author, top.created_by) == ("why", "me", "sh -c 'echo kept >> file; mkdir d'")
    assert top.created is not None
    assert abs(top.created.timestamp() - time.time()) < 60
    assert not (scratch / "state" / "try").exists()


@root
def test_a_layer_is_not_kept_in_a_directory_that_holds_something(scratch: Path, host: Path) -> None:
    (host / "file").write_text("")
    done = run(scratch, "--keep", str(host), "--", "touch", "/run/unionfs-never", check=125)
    assert "a directory that is new or empty" in done.stderr
    assert not Path("/run/unionfs-never").exists()


@root
def test_what_cannot_be_kept_where_it_should_is_kept_elsewhere(scratch: Path, host: Path) -> None:
    layer = host / "layer"
    script = "touch made; echo ready; read x"
    with start(scratch, "--keep", str(layer), "--", "sh", "-c", script, cwd=host) as process:
        layer.mkdir()
        (layer / "in the way").touch()
        _, said = process.communicate("go\n", timeout=30)
    assert process.returncode == 1
    kept = re.search(r"kept as a layer: (.*)\n", said)
    assert f"unionfs: {layer}: " in said
    assert kept
    assert (Path(kept[1]) / str(host / "made")[1:]).exists()


@root
def test_a_command_with_arguments_that_are_no_text_is_kept_with_its_history(scratch: Path, host: Path) -> None:
    layer = scratch / "layer"
    run(scratch, "--keep", str(layer), "--", "touch", "name\udcff", "x" * 200, cwd=host)
    with unionfs.UnionFS(lower=[layer, "/"]) as fs:
        assert fs.history()[0].created_by.startswith(r"touch 'name\udcff' xxx")


@root
def test_without_a_terminal_nothing_is_lost(scratch: Path, host: Path) -> None:
    done = run(scratch, "--", "sh", "-c", "echo text > file; exit 4", cwd=host, check=4)
    kept = re.fullmatch(r"unionfs: kept as a layer: (.*)", done.stderr.splitlines()[-1])
    assert kept
    assert (Path(kept[1]) / str(host / "file")[1:]).read_text() == "text\n"
    assert list(host.iterdir()) == []


APPLIED = """
    echo more >> keep/a
    rm -rf gone
    mv old new; echo changed > new/deep/c; touch new/e
    chmod 640 meta/m; setfattr -n user.k2 -v w meta/m; setfattr -x user.k1 meta/m; chown 7:8 meta/m
    touch -d 2001-01-01 meta
    mv one s; mv two one; mv s two
    mkfifo fifo; mknod null c 1 3
    ln one linked; ln unchanged linked-too
    rm -r directory; echo now a file > directory
    rm file; mkdir -p file/in; echo q > file/in/q; chmod 750 file/in; touch -d 2002-02-02 file/in
    rm link; ln -s new link
    truncate -s 2M sparse
    touch "$(printf 'name\\377')"
"""


def make_tree(directory: Path) -> Path:
    directory.mkdir()
    for name in (
        "keep/a",
        "gone/sub/b",
        "old/deep/c",
        "old/d",
        "meta/m",
        "unchanged",
        "one",
        "two",
        "directory/x",
        "file",
    ):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    (directory / "link").symlink_to("keep")
    os.setxattr(directory / "meta/m", "user.k1", b"v")
    with (directory / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    return directory


@root
@pytest.mark.needs("setfattr")
def test_applied_changes_are_as_if_the_command_had_run_on_the_host(scratch: Path) -> None:
    subject, oracle = make_tree(scratch / "subject"), make_tree(scratch / "oracle")
    subprocess.run(["sh", "-ec", APPLIED], cwd=oracle, check=True)
    found = report(scratch, "--apply", "--", "sh", "-ec", APPLIED, cwd=subject)
    assert (found["outcome"], found["problems"]) == ("applied", [])
    assert seen(subject) == seen(oracle)
    for name in ("meta", "file/in"):
        assert (subject / name).stat().st_mtime_ns == (oracle / name).stat().st_mtime_ns
    assert (subject / "sparse").stat().st_blocks == 0
    assert not (scratch / "state").exists()


@root
def test_a_moved_file_keeps_its_content_when_its_old_name_is_taken(scratch: Path, host: Path) -> None:
    # The moved file's data are still read from the host's old name while that name gets another file.
    (host / "a").write_text("first")
    (host / "b").write_text("second")
    run(scratch, "--apply", "--", "sh", "-ec", "mv a z; mv b a", cwd=host)
    assert {path.name: path.read_text() for path in host.iterdir()} == {"a": "second", "z": "first"}


@root
@pytest.mark.parametrize(
    ("command", "on_host", "path"),
    [
        ("echo ours >> file", "echo theirs >> file", "file"),
        ("rm file", "echo theirs >> file", "file"),
        ("echo ours > new", "echo theirs > new", "new"),
        ("rm -r dir", "touch dir/theirs", "dir"),
    ],
)
def test_what_the_host_changed_too_is_a_conflict(
    scratch: Path, host: Path, command: str, on_host: str, path: str
) -> None:
    (host / "file").write_text("base\n")
    (host / "other").write_text("base\n")
    (host / "dir").mkdir()
    with start(scratch, "--apply", "--", "sh", "-ec", f"{command}; rm other; echo ready; read x", cwd=host) as process:
        subprocess.run(["sh", "-ec", on_host], cwd=host, check=True)
        now = seen(host)
        _, said = process.communicate("go\n", timeout=30)
    assert process.returncode == 1
    assert any(line.startswith(f"unionfs: {host / path}: ") and "meanwhile" in line for line in said.splitlines()), said
    assert "nothing is applied" in said
    assert "kept as a layer" in said
    assert seen(host) == now


@root
def test_force_applies_all_the_same(scratch: Path, host: Path) -> None:
    (host / "file").write_text("base\n")
    script = "echo ours > file; echo ready; read x"
    with start(scratch, "--apply", "--force", "--", "sh", "-ec", script, cwd=host) as process:
        (host / "file").write_text("theirs\n")
        process.communicate("go\n", timeout=30)
    assert process.returncode == 0
    assert (host / "file").read_text() == "ours\n"


@root
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_applied_through_a_symbolic_link_of_the_host(scratch: Path, host: Path, force: bool) -> None:
    (host / "dir").mkdir()
    (scratch / "elsewhere").mkdir()
    flags = ["--apply", "--force"] if force else ["--apply"]
    script = "echo ours > dir/new; echo ready; read x"
    with start(scratch, *flags, "--", "sh", "-ec", script, cwd=host) as process:
        (host / "dir").rmdir()
        (host / "dir").symlink_to(scratch / "elsewhere")
        process.communicate("go\n", timeout=30)
    assert list((scratch / "elsewhere").iterdir()) == []
    assert process.returncode == (0 if force else 1)
    assert (host / "dir").is_symlink() == (not force)


@root
def test_what_cannot_be_applied_is_told_the_rest_is_done_and_nothing_deleted(scratch: Path, host: Path) -> None:
    for name in ("fixed", "plain"):
        (host / name).mkdir()
        (host / name / "file").write_text("base\n")
        (host / name / "old").write_text("old\n")
    subprocess.run(["mount", "--bind", host / "fixed", host / "fixed"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", host / "fixed"], check=True)
    script = "for d in fixed plain; do echo ours >> $d/file; rm $d/old; touch $d/new; done"
    found = report(scratch, "--apply", "--", "sh", "-ec", script, cwd=host, check=1)
    problems = {os.path.relpath(problem["path"], host): problem["text"] for problem in found["problems"]}
    assert problems.pop("plain/old").startswith("not deleted")
    assert problems.pop("fixed/old").startswith("not deleted")
    assert problems == dict.fromkeys(("fixed/file", "fixed/new"), os.strerror(30))
    assert (host / "plain/file").read_text() == "base\nours\n"
    assert (host / "plain/new").exists()
    assert (host / "plain/old").exists()
    assert sorted(path.name for path in host.rglob("*")) == sorted(
        ["fixed", "plain", "file", "file", "old", "old", "new"]
    )
    assert found["outcome"] == "failed"
    assert (Path(found["layer"]) / str(host / "fixed/new")[1:]).exists()


# Other users


@pytest.fixture
def user(as_user: AsUser) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*args: str, fuse: bool = True) -> subprocess.CompletedProcess[str]:
        return as_user.run([*UNIONFS, "try", *args], fuse=fuse, check=False)

    return call


@pytest.mark.userns
def test_anyone_is_root_over_what_is_theirs(as_user: AsUser, user: Callable[..., Any]) -> None:
    script = """
        id -u; stat -c %u /etc/passwd .; echo mine > file; rm /etc/passwd; echo x >> /etc/hosts
        mkdir /opt/new && mv /usr/share/common-licenses /opt/new && ls /opt/new/common-licenses | grep -cx GPL-3
        cat /etc/shadow 2>/dev/null && echo leaked
    """
    done = user("--discard", "--all", "--", "sh", "-c", script)
    assert done.stdout.split() == ["0", "0", "0", "1"], done.stderr
    lines = [line.split("  ")[0] for line in done.stderr.splitlines()]
    assert {"D /etc/passwd", "C /etc/hosts", "A /opt/new/", "D /usr/share/common-licenses/"} <= set(lines)
    assert f"A {as_user.scratch}/file" in lines
    assert not (as_user.scratch / "file").exists()
    assert Path("/etc/passwd").exists()


@pytest.mark.userns
def test_a_user_applies_what_is_theirs_and_is_told_of_the_rest(as_user: AsUser, user: Callable[..., Any]) -> None:
    done = user("--apply", "--", "sh", "-c", "mkdir d; echo mine > d/file")
    assert done.returncode == 0, done.stderr
    made = as_user.scratch / "d" / "file"
    assert made.read_text() == "mine\n"
    assert made.stat().st_uid == as_user.uid
    done = user("--apply", "--", "sh", "-c", "echo more >> d/file; echo x >> /etc/hosts")
    assert done.returncode == 1
    assert "unionfs: /etc/hosts: Permission denied" in done.stderr
    assert made.read_text() == "mine\nmore\n"
    assert "kept as a layer" in done.stderr


@pytest.mark.userns
def test_a_users_layer_records_what_the_user_may_not_set(as_user: AsUser, user: Callable[..., Any]) -> None:
    done = user("--keep", "layer", "--", "sh", "-c", "echo x >> /etc/hosts; rm /etc/motd; chmod 0 /etc/hosts")
    assert done.returncode == 0, done.stderr
    layer = as_user.scratch / "layer"
    with unionfs.UnionFS(lower=[layer, "/"]) as fs:
        assert not fs.exists("/etc/motd")
        assert stat.S_IMODE(fs.stat("/etc/hosts").st_mode) == 0
        assert fs.history()[0].created_by.startswith("sh -c")


class WithSubordinateIds(AsUser):
    """A user with a name, and with 65536 subordinate ids from 200000 on."""

    def _script(self, command: Sequence[str], fuse: bool) -> str:
        lines = []
        for table, line in (
            ("passwd", f"someone:x:{self.uid}:{self.gid}::/tmp:/bin/sh"),
            ("subuid", "someone:200000:65536"),
            ("subgid", "someone:200000:65536"),
        ):
            mine = self.scratch / table
            mine.write_text((Path("/etc/passwd").read_text() if table == "passwd" else "") + f"{line}\n")
            lines.append(f"mount --bind {mine} /etc/{table}")
        return "\n".join([*lines, super()._script(command, fuse)])


@root
@pytest.mark.userns
@pytest.mark.needs("newuidmap", "setpriv")
def test_with_subordinate_ids_a_user_has_other_users_too() -> None:
    if not (Path("/etc/subuid").exists() and Path("/etc/subgid").exists()):
        pytest.skip("not applicable: no /etc/subuid to mount over")
    script = """
        touch own other; chown 33:34 other; stat -c %u:%g own other
        setpriv --reuid 33 --regid 34 --clear-groups sh -c 'id -u; touch /tmp/theirs; stat -c %u /tmp/theirs'
    """
    with WithSubordinateIds() as user:
        done = user.run([*UNIONFS, "try", "--keep", "layer", "--", "sh", "-ec", script], fuse=True)
        kept = user.scratch / "layer" / str(user.scratch)[1:] / "other"
        assert (kept.stat().st_uid, kept.stat().st_gid) == (200032, 200033)
        assert not (user.scratch / "other").exists()
    assert done.stdout.split() == ["0:0", "33:34", "33", "33"]
    assert "one user only" not in done.stderr


def test_subordinate_ids_are_read_as_subuid_5_has_them(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("other:1:2\nme:100000:65536\n1000:300000:10\nme:bad:1\nme:1\n\n")
    ranges = subordinate(str(table), {"me", "1000"})
    assert [str(found) for found in ranges] == ["1 100000 65536", "65537 300000 10"]
    assert subordinate(str(tmp_path / "none"), {"me"}) == ()


@pytest.mark.userns
def test_a_user_without_fuse_is_told_in_one_line(user: Callable[..., Any]) -> None:
    if os.access("/dev/fuse", os.R_OK) and os.stat("/dev/fuse").st_mode & stat.S_IROTH:
        pytest.skip("not applicable: anybody may open /dev/fuse here")
    done = user("--discard", "--", "true", fuse=False)
    assert done.returncode == 125
    assert done.stderr.splitlines() == ["unionfs: FUSE: /dev/fuse can't be opened: Permission denied"]
