"""Fixtures and rules for all tests.

A test that needs more than Python says so with a marker (pyproject.toml lists them) and is skipped, with the name of
what is lacking, where the machine has not got it. With UNIONFS_REQUIRE_ALL=1, as in CI, such a skip is a failure: a
green run means that everything ran. A skip whose reason starts with "not applicable" stays a skip.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import filesystem, kernellog, support

if TYPE_CHECKING:
    from unionfs import Container, Image, Store

REQUIRE_ALL = os.environ.get("UNIONFS_REQUIRE_ALL", "") not in ("", "0")

PROBES = {
    "root": support.lacking_root,
    "fuse": support.lacking_fuse,
    "userns": support.lacking_userns,
    "overlay": support.lacking_overlay,
    "loop": support.lacking_loop,
    "network": support.lacking_network,
}

# mkfs, losetup and setcap live where a plain user's PATH does not lead.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

hypothesis.settings.register_profile("unionfs", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("unionfs"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "unionfs")


def pytest_configure(config: pytest.Config) -> None:
    # Once for all workers, which inherit the environment; UNIONFS_SCRATCH=DIR says that it is to be elsewhere.
    if "UNIONFS_SCRATCH" in os.environ or config.option.collectonly or (own := filesystem.make()) is None:
        return
    config.add_cleanup(lambda: filesystem.remove(own))
    os.environ["UNIONFS_SCRATCH"] = os.environ["TMPDIR"] = str(own)
    tempfile.tempdir = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        if marker.name in PROBES and (lacking := PROBES[marker.name]()):
            support.lacks(lacking)
        if marker.name == "needs" and (lacking := support.lacking_programs(*marker.args)):
            support.lacks(lacking)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (REQUIRE_ALL and report.skipped):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith("not applicable"):
        report.outcome = "failed"
        report.longrepr = f"{reason}\nUNIONFS_REQUIRE_ALL is set: a test that can't run is a failure."


@pytest.fixture(autouse=True)
def _kernel_log(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("overlay") is None:
        yield
        return
    with kernellog.taking_part():
        yield


@pytest.fixture(scope="session")
def is_root() -> bool:
    """Whether the tests run as root and may mount."""
    return not support.lacking_root()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty directory on a file system that takes overlay xattrs and whiteouts; with a short path.

    Whatever is mounted below it at the end is unmounted lazily, and all is removed, also after a failure.
    """
    directory = support.make_scratch()
    yield directory
    support.remove_scratch(directory)


@pytest.fixture
def source(scratch: Path) -> Path:
    """A small tree to import (`storehouse.make_source`)."""
    from tests.storehouse import make_source

    return make_source(scratch / "source")


@pytest.fixture
def store(scratch: Path) -> Iterator[Store]:
    """An empty store."""
    from unionfs import Store

    with Store(scratch / "store") as store:
        yield store


@pytest.fixture
def base(store: Store, source: Path) -> Image:
    """The image `base` of that tree in that store."""
    return store.import_(source, "base")


@pytest.fixture
def web(store: Store, base: Image) -> Iterator[Container]:
    """The container `web` on it."""
    with store.create("base", "web") as web:
        yield web


@pytest.fixture
def as_user() -> Iterator[support.AsUser]:
    """An unprivileged user, with a scratch directory of its own."""
    with support.AsUser() as user:
        yield user
