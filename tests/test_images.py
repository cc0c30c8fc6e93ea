"""Store, Image and Container as people use them: names, what is in use, what is imported, where a store is."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.storehouse import layers_on_disk, lines
from unionfs import Container, Image, InUseError, NotFoundError, Store, UnionError, UpperBusyError

# Names


def test_latest_is_left_out(store: Store, base: Image) -> None:
    assert base.names == ["base:latest"]
    assert store.image("base") == store.image("base:latest") == base
    store.tag("base", "registry.example:5000/team/base:1.0")
    assert store.image("registry.example:5000/team/base:1.0") == base
    assert base.names == ["base:latest", "registry.example:5000/team/base:1.0"]


def test_digests_and_beginnings_are_names(store: Store, base: Image, web: Container) -> None:
    hexadecimal = base.id.removeprefix("sha256:")
    for name in (base.id, hexadecimal, hexadecimal[:12], "sha256:" + hexadecimal[:9], base.digest, base.digest[:20]):
        assert store.image(name) == base
    for name in (web.id, web.id[:10], "web"):
        assert store.container(name).id == web.id
    (layer,) = base.layers
    for key in (layer.id, layer.id[:12], layer.chain_id, layer.diff_id):
        assert key is not None
        assert store.point(key).layer == layer.id


def test_a_beginning_that_several_have_is_refused(store: Store, base: Image) -> None:
    for i in range(40):
        store.create("base", f"c{i}")
    ids = sorted(container.id for container in store.containers())
    twice = next(a[:n] for a, b in itertools.pairwise(ids) for n in (2, 1) if a[:n] == b[:n])
    with pytest.raises(NotFoundError, match="beginning of several containers") as caught:
        store.container(twice)
    assert "\n" not in str(caught.value)
    assert store.container(ids[0]).id == ids[0]


@pytest.mark.parametrize("name", ["none", "0" * 12, "sha256:" + "0" * 64, "UPPER", "a b", "", "web~1", "../x"])
def test_what_is_not_there(store: Store, web: Container, name: str) -> None:
    for look in (store.image, store.container, store.remove_image, lambda ref: store.tag(ref, "x")):
        with pytest.raises(NotFoundError) as caught:
            look(name)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(NotFoundError):
        store.point("none~1")


@pytest.mark.parametrize("name", ["Big", "a:b:c", "x@sha256:" + "0" * 64, "", "a/", "name:tag with space", "-x"])
def test_bad_names_of_images(store: Store, base: Image, name: str) -> None:
    with pytest.raises(UnionError) as caught:
        store.tag("base", name)
    assert len(str(caught.value).splitlines()) == 1
    assert store.image("base").names == ["base:latest"]


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b", "a b", "é", "a" * 256])
def test_bad_names_of_containers(store: Store, base: Image, web: Container, name: str) -> None:
    with pytest.raises(UnionError, match="no name for a container"):
        store.create("base", name)
    with pytest.raises(UnionError, match="no name for a container"):
        web.rename(name)
    assert [container.name for container in store.containers()] == ["web"]
    assert os.listdir(f"{store.path}/containers") == [web.id]


def test_names_of_containers_are_given_once(store: Store, web: Container) -> None:
    with pytest.raises(InUseError, match="'web' is in use"):
        store.create("base", "web")
    other = store.create("base")
    assert other.name != "web"
    with pytest.raises(InUseError):
        other.rename("web")
    web.rename("old")
    other.rename("web")
    assert (store.container("web").id, store.container("old").id) == (other.id, web.id)
    assert len(os.listdir(f"{store.path}/containers")) == 2


def test_points_below(store: Store, base: Image, web: Container) -> None:
    web.fs.write_text("/a", "a")
    one = web.commit("one")
    web.fs.write_text("/b", "b")
    two = web.commit("two")
    top, middle, bottom = (layer.id for layer in two.layers)
    assert [store.point(f"two{back}").layer for back in ("", "~0", "~", "~1", "~2", "~~", "~3")] == [
        top, top, middle, middle, bottom, bottom, None,
    ]  # fmt: skip
    assert one.layers[0].id == middle
    # A container's point is its present state, and that stands on its topmost layer.
    assert store.point("web~1").layer == top
    with pytest.raises(NotFoundError, match="has 3 layers"):
        store.point("two~4")
    with store.open("two~1") as fs:
        assert sorted(fs.listdir()) == ["a", "bin", "etc"]
    with store.open("two~3") as fs:
        assert fs.listdir() == []


def test_a_tag_moves(store: Store, base: Image, web: Container) -> None:
    web.fs.write_text("/new", "")
    newer = web.commit()
    assert newer.names == []
    store.tag(newer, "base")
    assert store.image("base") == newer
    assert base.names == []
    assert store.image(base.id) == base
    before = set(layers_on_disk(store))
    store.tag(base.id, "again")
    assert set(layers_on_disk(store)) == before


def test_newest_first(store: Store, base: Image, web: Container) -> None:
    later = store.create("base", "later")
    assert [container.id for container in store.containers()] == [later.id, web.id]
    web.fs.write_text("/x", "")
    image = web.commit("x")
    assert store.images() == [image, base]
    assert abs(dt.datetime.now(dt.UTC) - later.created).total_seconds() < 60


# What is in use


def test_rmi_takes_names_and_at_last_the_image(store: Store, base: Image) -> None:
    store.tag("base", "other:1")
    with pytest.raises(InUseError, match="several names"):
        store.remove_image(base.id)
    assert store.remove_image("other:1") == ["Untagged: other:1"]
    assert store.image("base") == base
    assert store.remove_image("base")[:2] == ["Untagged: base:latest", f"Deleted: {base.id}"]
    assert store.images() == []
    assert layers_on_disk(store) == []
    store.gc()
    assert os.listdir(f"{store.path}/blobs/sha256") == []


def test_an_image_of_a_container_stays(store: Store, base: Image, web: Container) -> None:
    with pytest.raises(InUseError, match="'web'"):
        store.remove_image("base")
    with pytest.raises(InUseError, match="'web'"):
        store.remove_image(base.id)
    assert base.names == ["base:latest"]
    store.tag("base", "second")
    assert store.remove_image("second") == ["Untagged: second:latest"]
    assert store.remove_image("base", force=True) == ["Untagged: base:latest"]
    store.gc()
    assert store.images() == [base]
    assert web.fs.read_text("/etc/motd") == "hello\n"
    web.remove()
    store.gc()
    assert (store.images(), store.containers(), layers_on_disk(store)) == ([], [], [])


def test_layers_that_others_stand_on_stay(store: Store, base: Image, web: Container) -> None:
    web.fs.write_text("/x", "")
    child = web.commit("child")
    web.remove()
    store.remove_image("base")
    assert store.images() == [child]
    assert len(layers_on_disk(store)) == 2
    with child.open() as fs:
        assert fs.read_text("/etc/motd") == "hello\n"
        store.remove_image("child")
        store.gc()
        # Who reads has a lease.
        assert fs.read_text("/etc/conf.d/one") == "1"
        assert len(layers_on_disk(store)) == 2
    store.gc()
    assert layers_on_disk(store) == []


def test_an_open_container_is_not_removed_by_others(store: Store, web: Container, scratch: Path) -> None:
    web.fs.write_text("/x", "mine")
    code = (
        "import sys, unionfs\n"
        "with unionfs.Store(sys.argv[1]) as store:\n"
        "    web = store.container('web')\n"
        "    print(web.status)\n"
        "    for act in (web.remove, lambda: web.fs):\n"
        "        try: act()\n"
        "        except unionfs.UnionError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True)
    status, refused, busy = done.stdout.splitlines()
    assert status == web.status == f"open in pid {os.getpid()}"
    assert refused == f"InUseError container 'web' is open in pid {os.getpid()}"
    assert busy.startswith("UpperBusyError")
    web.close()
    assert web.status == "created"
    with store.container("web") as again:
        assert again.fs.read_text("/x") == "mine"


def test_a_removed_container_is_gone(store: Store, web: Container) -> None:
    web.fs.write_text("/x", "")
    web.remove()
    for ask in (lambda: web.name, lambda: web.fs, web.diff, web.commit, web.fork, web.remove, lambda: web.status):
        with pytest.raises(NotFoundError, match="is gone"):
            ask()
    assert os.listdir(f"{store.path}/containers") == []
    assert os.listdir(f"{store.path}/trash") == []


def test_two_objects_of_one_container(store: Store, web: Container) -> None:
    other = store.container("web")
    web.fs.write_text("/x", "")
    with pytest.raises(UpperBusyError):
        _ = other.fs
    assert lines(other.diff()) == ["A /x"]
    image = other.commit("x")
    assert lines(web.diff()) == lines(other.diff()) == []
    assert web.image == other.image == image
    other.rollback("base")
    assert not web.fs.exists("/x")


# Import


def test_a_directory_and_its_tar_are_the_same_image(store: Store, base: Image, source: Path, scratch: Path) -> None:
    first = base.layers[0].diff_id
    for mode in ("", "gz", "bz2", "xz"):
        path = scratch / f"x.tar{mode}"
        with tarfile.open(str(path), f"w:{mode}", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            tar.add(source, ".")
        image = store.import_(path, f"tar{mode}", created=base.created)
        assert image.layers[0].diff_id == first
        with open(path, "rb") as file:
            assert store.import_(file, created=base.created) == image == base
    assert len(layers_on_disk(store)) == 1


def test_what_can_not_be_imported(store: Store, scratch: Path) -> None:
    broken = scratch / "broken.tar"
    broken.write_bytes(os.urandom(3000))
    for wrong in (broken, scratch / "none", "/dev/null/x"):
        with pytest.raises((UnionError, OSError)) as caught:
            store.import_(wrong, "x")
        assert len(str(caught.value).splitlines()) == 1
    assert store.images() == []
    assert os.listdir(f"{store.path}/tmp") == layers_on_disk(store) == []


# The store itself


def test_where_a_store_is(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIONFS_STORE", str(scratch / "given"))
    with Store() as store:
        assert store.path == str(scratch / "given")
    monkeypatch.delenv("UNIONFS_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(scratch / "data"))
    with Store() as store:
        assert store.path == str(scratch / "data/unionfs")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(scratch / "home"))
    with Store() as store:
        assert store.path == str(scratch / "home/.local/share/unionfs")
        assert os.stat(store.path).st_mode & 0o077 == 0


def test_a_place_for_no_store(scratch: Path) -> None:
    (scratch / "file").write_text("")
    with pytest.raises(UnionError) as caught:
        Store(scratch / "file")
    assert len(str(caught.value).splitlines()) == 1
    (scratch / "other").mkdir()
    (scratch / "other/metadata.db").write_bytes(b"no database " * 100)
    with pytest.raises(UnionError, match=r"metadata\.db"):
        Store(scratch / "other")


def test_it_lasts(store: Store, base: Image, web: Container, scratch: Path) -> None:
    web.fs.write_text("/x", "y")
    image = web.commit("x", message="said")
    web.fs.write_text("/z", "")
    web.close()
    store.close()
    with Store(scratch / "store") as again:
        assert again.images() == [image, base]
        assert again.image("x").history()[0].comment == "said"
        with again.container("web") as there:
            assert lines(there.diff()) == ["A /z"]
            assert there.fs.read_text("/x") == "y"
