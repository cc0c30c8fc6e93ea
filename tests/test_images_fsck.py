"""A store that was damaged on purpose: fsck names what is wrong, changes nothing, and what is whole stays usable."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from tests import support
from unionfs.errors import StoreError, UnionError
from unionfs.images import hashing
from unionfs.images.fsck import check_path
from unionfs.images.problems import Problem
from unionfs.images.store import Store
from unionfs.store.records import PENDING, LayerRecord


@pytest.fixture(scope="module")
def sound() -> Iterator[Path]:
    """A store with an image of three layers, one of one layer, and a container."""
    scratch = support.make_scratch()
    for name in ("source", "other"):
        (scratch / name / "etc").mkdir(parents=True)
        (scratch / name / "etc" / "hosts").write_text(f"{name}\n" * 1000)
    with Store(scratch / "store") as store:
        store.import_(scratch / "source", "base")
        store.import_(scratch / "other", "other")
        with store.create("base", "web") as web:
            web.fs.write_text("/etc/motd", "hello")
            web.fs.symlink("motd", "/etc/link")
            web.commit("two")
            web.fs.chmod("/etc/motd", 0o600)
            web.fs.remove("/etc/hosts")
            web.commit("three")
        assert store.fsck() == []
    yield scratch / "store"
    support.remove_scratch(scratch)


@pytest.fixture
def place(sound, scratch) -> Path:
    """A copy of it."""
    subprocess.run(["cp", "-aT", sound, scratch / "store"], check=True)
    return scratch / "store"


@pytest.fixture
def store(place) -> Iterator[Store]:
    with Store(place) as store:
        yield store


def state(top: Path) -> dict[str, tuple[object, ...]]:
    """All that is on disk below `top`, but for what SQLite makes when somebody reads."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        st = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
        if not path.name.endswith(("-shm", "-wal")):
            found[str(path)] = (st.st_mode, st.st_uid, st.st_mtime_ns, st.st_ino, hashlib.sha256(data).digest())
    return found


def checked(store: Store) -> list[Problem]:
    """What is wrong, notes left out; the same from outside; nothing changed."""
    before = state(Path(store.path))
    found = store.fsck()
    assert check_path(store.path) == found
    assert state(Path(store.path)) == before
    return [problem for problem in found if not problem.note]


def only(store: Store) -> Problem:
    (problem,) = checked(store)
    return problem


def works(store: Store, image: str = "other") -> None:
    """What is whole can be used: opened, stood on, committed."""
    with store.open(image) as fs:
        assert fs.listdir("/etc")
    with store.create(image) as container:
        container.fs.write_text("/new", "x")
        made = container.commit()
    with made.open() as fs:
        assert fs.read_text("/new") == "x"


def layer_of(store: Store, image: str) -> str:
    return store.image(image).layers[0].id


def flip(path: str | Path) -> None:
    """One bit of a file, and nothing else: its times stay."""
    st = os.stat(path)
    with open(path, "r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


# Layers


def test_a_flipped_bit_in_a_layer_is_found_in_its_file(store):
    layer = layer_of(store, "base")
    path = f"{store.keep.places.diff(layer)}/etc/hosts"
    flip(path)
    problem = only(store)
    assert (problem.what, problem.id, problem.path) == ("layer", layer, path)
    assert problem.text == "/etc/hosts has other bytes"
    assert set(problem.images) == {"base:latest", "two:latest", "three:latest"}
    works(store)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda etc: os.remove(f"{etc}/motd"), "/etc/motd is gone"),
        (lambda etc: Path(f"{etc}/more").write_text("x"), "/etc/more is not as below"),
        (lambda etc: os.chmod(f"{etc}/motd", 0o4755), "a mode"),
        (lambda etc: os.utime(f"{etc}/motd", (0, 0)), "a time"),
        (lambda etc: subprocess.run(["ln", "-sfn", "x", f"{etc}/link"], check=True), "link's target|/etc/link"),
        (lambda etc: os.truncate(f"{etc}/motd", 2), "/etc/motd has other bytes"),
    ],
)
def test_whatever_was_changed_in_a_layer_is_found(store, damage, words):
    layer = layer_of(store, "two")
    damage(f"{store.keep.places.diff(layer)}/etc")
    found = [problem for problem in checked(store) if problem.id == layer]
    assert any(word in str(problem) for problem in found for word in words.split("|"))
    assert all(set(problem.images) == {"two:latest", "three:latest"} for problem in found)
    works(store)
    works(store, "base")


def test_a_missing_layer_is_named_and_no_reason_not_to_look_at_others(store):
    layer = layer_of(store, "two")
    shutil.rmtree(store.keep.places.diff(layer))
    flip(f"{store.keep.places.diff(layer_of(store, 'other'))}/etc/hosts")
    missing, flipped = checked(store)
    assert (missing.id, missing.text) == (layer, "its directory is missing")
    assert flipped.images == ("other:latest",)
    notes = [problem for problem in store.fsck() if problem.note]
    assert [problem.id for problem in notes] == [layer_of(store, "three")]
    works(store, "base")
    with pytest.raises((UnionError, OSError)):
        store.open("three").close()


def test_a_layer_that_is_no_directory(store):
    layer = layer_of(store, "other")
    shutil.rmtree(store.keep.places.diff(layer))
    Path(store.keep.places.diff(layer)).write_text("no directory")
    assert only(store).text == "is no directory"
    works(store, "three")


@pytest.mark.parametrize("data", [None, b"", b"\x1f\x8b junk", b"plain"])
def test_a_damaged_list_of_changes_is_told_and_the_layer_still_checked(store, data):
    layer = layer_of(store, "two")
    path = Path(store.keep.places.layer(layer)) / "changes"
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    problem = only(store)
    assert (problem.id, problem.path) == (layer, str(path))
    assert ("missing" if data is None else "can't be read") in problem.text
    flip(f"{store.keep.places.diff(layer)}/etc/motd")
    assert any("something in it was changed" in problem.text for problem in checked(store))
    works(store, "two")


def test_a_list_of_changes_of_another_layer(store):
    layer = layer_of(store, "two")
    shutil.copy(f"{store.keep.places.layer(layer_of(store, 'other'))}/changes", store.keep.places.layer(layer))
    problem = only(store)
    assert (problem.id, problem.text) == (layer, "the list of its changes does not tell what the layer holds")


@pytest.mark.parametrize("at", [3, 200])
def test_a_damaged_index_is_told(store, at):
    layer = layer_of(store, "two")
    path = store.keep.places.index(layer)
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff\xff\xff")
    problem = only(store)
    assert (problem.id, problem.path) == (layer, path)
    works(store, "three")


def test_permissions_that_others_could_use(store):
    one, two = layer_of(store, "two"), layer_of(store, "other")
    os.chmod(store.keep.places.layer(one), 0o777)
    os.chmod(store.keep.places.layer(two), 0)
    os.chmod(store.keep.places.database, 0o666)
    found = {problem.path: problem.text for problem in checked(store)}
    if os.geteuid() != 0:
        assert "can't be opened" in found.pop(store.keep.places.diff(two))
    assert found == {
        store.keep.places.layer(one): "anybody may write to it (mode 0777)",
        store.keep.places.layer(two): "its owner may not use it (mode 0000)",
        store.keep.places.database: "metadata.db anybody may write to it (mode 0666)",
    }


@pytest.mark.root
def test_what_belongs_to_somebody_else(store):
    os.chown(store.keep.places.layer(layer_of(store, "two")), 1234, -1)
    assert only(store).text == "belongs to user 1234, the store to user 0"


# Blobs and images


def test_a_flipped_bit_in_a_blob(store):
    image = store.image("two")
    flip(store.keep.blobs.path(image.id))
    problem = only(store)
    assert (problem.what, problem.id, problem.images) == ("blob", image.id, ("two:latest",))
    assert "another digest" in problem.text
    works(store)
    works(store, "three")


def test_a_missing_blob(store):
    image = store.image("three")
    os.unlink(store.keep.blobs.path(image.digest))
    problem = only(store)
    assert (problem.what, problem.id, problem.text) == ("blob", image.digest, "is missing")
    works(store)
    works(store, "two")


def test_an_image_without_a_name_is_called_by_its_id(store):
    image = store.image("three")
    store.tag("base", "three")
    os.unlink(store.keep.blobs.path(image.id))
    assert only(store).images == (image.id.removeprefix("sha256:")[:12],)


def test_documents_and_rows_that_do_not_fit(store):
    image, other = store.image("two"), store.image("other")
    with store.keep.database.transaction("damage"):
        store.keep.database.execute("UPDATE images SET layer = ? WHERE id = ?", (other.record.layer, image.id))
    assert {problem.text for problem in checked(store)} == {
        "its config and the database name different layers",
        "its manifest and the database name different layers",
    }
    with store.keep.database.transaction("damage"):
        store.keep.database.execute("UPDATE images SET layer = ? WHERE id = ?", (image.record.layer, image.id))
        store.keep.database.execute("UPDATE images SET manifest = ? WHERE id = ?", (other.digest, image.id))
    assert {(problem.what, problem.id, problem.images) for problem in checked(store)} == {
        ("image", image.id, ("two:latest",))
    }


def test_a_blob_that_is_no_document(store):
    with store.keep.places.publishing():
        digest = store.keep.blobs.put(b"[]")
    image = store.image("two")
    with store.keep.database.transaction("damage"):
        store.keep.database.execute("UPDATE images SET manifest = ? WHERE id = ?", (digest, image.id))
    assert [(problem.what, problem.id) for problem in checked(store)] == [("image", image.id)]


# Containers


@pytest.mark.parametrize(
    ("gone", "words"), [("", "its directory"), ("1/upper", "writable layer"), ("1/work", "writable")]
)
def test_a_container_without_its_directories(store, gone, words):
    container = store.container("web")
    shutil.rmtree(Path(container.directory) / gone)
    problem = only(store)
    assert (problem.what, problem.id) == ("container", container.id)
    assert problem.text.startswith("'web': ")
    assert words in problem.text
    works(store, "three")


def test_a_container_in_use_is_no_problem(store):
    with store.container("web") as web:
        web.fs.write_text("/x", "y")
        assert checked(store) == []
        web.fork("fork").close()
        assert checked(store) == []


def test_what_goes_while_it_is_looked_at_is_no_problem(store, monkeypatch):
    store.container("web").rollback("base")
    listed = store.keep.records.containers()
    container = store.container("web")
    container.rollback("two")
    answers = iter([listed])
    now = store.keep.records.containers
    monkeypatch.setattr(store.keep.records, "containers", lambda: next(answers, None) or now())
    assert store.fsck() == []
    before = store.keep.records.layers()
    container.remove()
    store.remove_image("three", force=True)
    layers = iter([before])
    later = store.keep.records.layers
    monkeypatch.setattr(store.keep.records, "layers", lambda: next(layers, None) or later())
    assert len(later()) < len(before)
    assert [problem for problem in store.fsck() if not problem.note] == []


# The database


def spoil(place: Path, how: str) -> None:
    path = place / "metadata.db"
    data = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(bytes(range(256)) * (len(data) // 256))
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "cut in a page":
            path.write_bytes(data[: len(data) // 2 + 100])
        case "newer":
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA user_version = 99")
            connection.close()
        case "another program's":
            path.unlink()
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE bookmarks (url TEXT)")
            connection.close()


WORDS = {
    "missing": "missing or empty",
    "empty": "missing or empty",
    "garbage": "damaged",
    "half": "damaged",
    "cut in a page": "damaged",
    "newer": "newer unionfs",
    "another program's": "another program",
}


@pytest.mark.parametrize("how", WORDS)
def test_a_database_that_can_not_be_used_is_told_and_the_store_left_alone(place, how):
    (place / "tmp" / "left").write_text("by a killed process")
    (place / "trash" / "left").write_text("by a killed process")
    blob = next((place / "blobs" / "sha256").iterdir())
    flip(blob)
    spoil(place, how)
    before = state(place)
    found = [problem for problem in check_path(place) if not problem.note]
    assert [problem.what for problem in found] == ["database", "blob"]
    assert WORDS[how] in found[0].text
    assert found[0].path == str(place / "metadata.db")
    assert found[1].path == str(blob)
    with pytest.raises(StoreError, match=WORDS[how]):
        Store(place)
    assert state(place) == before


def test_rows_that_point_nowhere(store):
    connection = sqlite3.connect(store.keep.places.database)
    with connection:
        connection.execute("INSERT INTO tags VALUES ('lost:latest', 'sha256:00')")
    connection.close()
    found = checked(store)
    assert {problem.what for problem in found} == {"database", "tag"}
    assert next(problem.id for problem in found if problem.what == "tag") == "lost:latest"


def test_damage_inside_the_database_stops_no_other_check(store, place):
    store.close()
    path = place / "metadata.db"
    with sqlite3.connect(path) as connection:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'containers'").fetchone()[0]
    connection.close()
    data = bytearray(path.read_bytes())
    data[(root - 1) * size : root * size] = b"\xff" * size
    path.write_bytes(data)
    hosts = next(path for path in (place / "layers").glob("*/diff/etc/hosts") if path.is_file())
    flip(hosts)
    found = check_path(place)
    assert {problem.what for problem in found} == {"database", "layer"}
    assert str(hosts) in {problem.path for problem in found}


# The store itself


def test_no_store_at_all(scratch):
    assert [problem.what for problem in check_path(scratch / "nothing")] == ["store"]
    assert not (scratch / "nothing").exists()
    (scratch / "empty").mkdir()
    assert {problem.what for problem in check_path(scratch / "empty")} == {"store", "database"}
    assert os.listdir(scratch / "empty") == []


def test_what_was_left_is_a_note(store):
    places = store.keep.places
    for path in (places.tmp, places.trash, places.leases, places.layers, places.containers, places.blobs):
        Path(path, "left").write_text("left")
    with store.keep.places.publishing():
        store.keep.blobs.put(b"unused")
    with store.keep.database.transaction("test"):
        store.keep.records.add_layer(LayerRecord("ab", None, 0, PENDING))
    assert checked(store) == []
    notes = store.fsck()
    assert {problem.path for problem in notes} >= {
        f"{path}/left" for path in (places.tmp, places.trash, places.leases, places.layers, places.containers)
    }
    assert any(problem.id == "ab" for problem in notes)
    store.gc()
    Path(places.blobs, "left").unlink()
    assert store.fsck() == []


def test_fsck_tells_how_far_it_is(store):
    seen = []
    store.fsck(report=lambda *values: seen.append(values))
    assert ("checking layers", 4, 4) in seen
    assert {what for what, _, _ in seen} >= {"checking the database", "checking blobs", "checking images"}


# Hashes


def test_many_files_are_hashed_in_their_order(scratch):
    paths = []
    for i in range(100):
        paths.append(scratch / str(i))
        paths[-1].write_bytes(os.urandom(i * 3000))
    wanted = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    def sha256(path):
        return hashing.hash_file(str(path), hashlib.sha256())

    assert list(hashing.in_parallel(sha256, paths)) == wanted
    assert len({hashing.hash_file(str(path), xxhash.xxh3_128()) for path in paths}) == 100
    with pytest.raises(FileNotFoundError):
        list(hashing.in_parallel(sha256, [*paths, scratch / "none"]))
