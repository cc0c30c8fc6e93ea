"""``make demo``, as a newcomer runs it: as root, without a network, and as another user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support import REPO, AsUser
from unionfs.cli.proof import fingerprint

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

DEMO = [sys.executable, "-m", "unionfs.cli.demo"]
NOWHERE = "http://127.0.0.1:9"

STORY = (
    r"1\. .*read-only lower layer.*fresh writable layer",
    r"Mounted through FUSE",
    r"2\. A real program runs in the merged root",
    r"# echo .* >> /etc/issue",
    r"# rm -r /etc/skel",
    r"# mv /usr/share/common-licenses /usr/share/licenses",
    r"3\. The diff shows exactly what changed, and the host is untouched",
    r"C /etc/issue  data, times; \+27 B",
    r"D /etc/skel/",
    r"A /usr/share/licenses/  renamed from /usr/share/common-licenses",
    r"/etc +.* xxh3 .* same",
    r"4\. Commit freezes the layer",
    r"frozen in \d+ ms",
    r"layer-2 .* demo .*\n.*layer-1 .* demo .*",
    r"first state, mounted again",
    r"the second edit is not",
    r"Done in \d+ s",
)


def check_story(text: str) -> None:
    at = 0
    for line in STORY:
        found = re.compile(line).search(text, at)
        assert found, f"{line!r} is not in:\n{text[at:]}"
        at = found.end()
    assert "\x1b" not in text


def run_demo(env: Mapping[str, str]) -> str:
    before = [fingerprint(path) for path in ("/etc", "/usr/share/common-licenses")]
    done = subprocess.run(
        DEMO, cwd=REPO, env={**os.environ, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert [fingerprint(path) for path in ("/etc", "/usr/share/common-licenses")] == before
    assert "unionfs-demo" not in Path("/proc/self/mountinfo").read_text()
    return done.stdout


@pytest.mark.root
@pytest.mark.network
@pytest.mark.needs("apt-get")
def test_as_root_it_installs_a_debian_package() -> None:
    said = run_demo({})
    check_story(said)
    assert "# apt-get install" in said
    assert not shutil.which("hello") or "figlet" in said


@pytest.mark.root
@pytest.mark.needs("apt-get", "dpkg-deb")
def test_without_a_network_it_builds_a_package(tmp_path: Path) -> None:
    (tmp_path / "apt.conf").write_text('Acquire::Retries "0";\n')
    said = run_demo({"http_proxy": NOWHERE, "https_proxy": NOWHERE, "APT_CONFIG": str(tmp_path / "apt.conf")})
    check_story(said)
    assert "the package is built here" in said
    assert "Hello from a package" in said


@pytest.mark.userns
@pytest.mark.network
def test_as_another_user_it_installs_a_python_package(as_user: AsUser) -> None:
    done = as_user.run(DEMO, fuse=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    check_story(done.stdout)
    assert "pip" in done.stdout


def test_a_fingerprint_sees_every_change(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "file").write_text("text")
    (tree / "link").symlink_to("d")
    seen = [fingerprint(str(tree))]

    def after(change: Callable[[], object]) -> None:
        change()
        found = fingerprint(str(tree))
        assert found.digest == fingerprint(str(tree)).digest
        assert found.digest not in [other.digest for other in seen]
        seen.append(found)

    st = (tree / "d" / "file").stat()
    after(lambda: (tree / "d" / "file").write_text("tex7"))
    after(lambda: os.utime(tree / "d" / "file", ns=(st.st_atime_ns, st.st_mtime_ns)))
    after(lambda: (tree / "d" / "file").chmod(0o600))
    after(lambda: (tree / "d" / "file").rename(tree / "d" / "other"))
    after((tree / "d" / "other").unlink)
    after(lambda: shutil.rmtree(tree))
    assert (seen[0].entries, seen[0].bytes) == (4, 4)
    assert seen[-1].entries == 0
