"""An image's documents: read and checked, written the same for ever, and read by other programs."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.archives import packed
from unionfs.errors import UnionError
from unionfs.layer.protocol import DT_DIR, DT_LNK, DT_REG, DT_WHT
from unionfs.oci import model
from unionfs.oci.document import time_of, time_text
from unionfs.oci.model import Descriptor, History, ImageConfig, Manifest, RunConfig, chain_ids, digest_of
from unionfs.oci.platform import this_platform
from unionfs.oci.tar import Entry

A, B, C = (digest_of(letter) for letter in (b"a", b"b", b"c"))

# As in image-spec's config.md, with fields that Docker adds, and one that nobody knows.
DOCUMENT = {
    "created": "2015-10-31T22:22:56.015925234Z",
    "author": "Alyssa P. Hacker <alyspdev@example.com>",
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "os.version": "1.2",
    "docker_version": "1.9",
    "config": {
        "User": "alice",
        "ExposedPorts": {"8080/tcp": {}, "22/tcp": {}},
        "Env": ["PATH=/usr/bin:/bin", "FOO=oci_is_a", "EMPTY="],
        "Entrypoint": ["/bin/my-app-binary"],
        "Cmd": ["--foreground", "--config", "/etc/caf\xe9"],
        "Volumes": {"/var/log/my-app-logs": {}, "/var/job-result-data": {}},
        "WorkingDir": "/home/alice",
        "Labels": {"com.example.project.git.url": "https://example.com/project.git"},
        "StopSignal": "SIGUSR1",
        "OnBuild": ["RUN make"],
        "Shell": ["/bin/bash", "-c"],
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30000000000},
        "ArgsEscaped": True,
    },
    "rootfs": {"diff_ids": [A, B], "type": "layers"},
    "history": [
        {"created": "2015-10-31T22:22:54.690851953Z", "created_by": "/bin/sh -c #(nop) ADD file:a3 in /", "x": 1},
        {"created": "2015-10-31T22:22:55.613815829Z", "created_by": 'CMD ["sh"]', "empty_layer": True},
        {"created": "2015-10-31T22:22:56.329850019Z", "author": "me", "comment": '<&> "\u2028'},
    ],
}


def document(**changes) -> bytes:
    return json.dumps({**DOCUMENT, **changes}).encode()


def test_a_config_comes_back_whole():
    config = ImageConfig.parse(document())
    assert json.loads(config.to_bytes()) == DOCUMENT
    assert ImageConfig.parse(config.to_bytes()) == config
    assert (config.architecture, config.os, config.variant) == ("arm64", "linux", "v8")
    assert (config.run.user, config.run.working_dir, config.run.shell) == ("alice", "/home/alice", ("/bin/bash", "-c"))
    assert config.run.exposed_ports == ("22/tcp", "8080/tcp")
    assert config.run.cmd == ("--foreground", "--config", "/etc/caf\xe9")
    assert config.diff_ids == (A, B)
    assert [each.empty_layer for each in config.history] == [False, True, False]
    assert config.extra == {"os.version": "1.2", "docker_version": "1.9"}


def test_the_bytes_are_the_same_for_ever():
    data = ImageConfig.parse(document()).to_bytes()
    assert digest_of(data) == "sha256:8fa9f05caa7e25b58b5bb8f445e572c1f866dec50116687d1d75a82fa15dfff4"
    small = ImageConfig.new("amd64", "linux").with_layer(A, History(created="2026-11-21T07:00:00Z"))
    assert small.to_bytes() == (
        b'{"architecture":"amd64","created":"2026-11-21T07:00:00Z","history":[{"created":"2026-11-21T07:00:00Z"}],'
        b'"os":"linux","rootfs":{"diff_ids":["' + A.encode() + b'"],"type":"layers"}}'
    )


def test_null_is_as_absent_and_empty_lists_are_not():
    absent = ImageConfig.parse(document(config={"Env": None, "Cmd": None, "Volumes": None, "Labels": None}))
    assert absent.run == RunConfig()
    assert ImageConfig.parse(document(config=None, author=None)).run == RunConfig()
    empty = ImageConfig.parse(document(config={"Cmd": [], "Entrypoint": []}))
    assert (empty.run.cmd, empty.run.entrypoint) == ((), ())
    assert json.loads(empty.to_bytes())["config"] == {"Cmd": [], "Entrypoint": []}


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON in UTF-8"),
        (b"[]", "must be an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (document(author="\ud800"), "half a surrogate pair"),
        (document(architecture=""), r"image config\.architecture: is required"),
        (document(architecture=7), r"architecture: must be a string"),
        (document(os=None), r"os: is required"),
        (document(rootfs=None), r"rootfs: must be an object"),
        (document(rootfs={"diff_ids": []}), r"rootfs\.type: is required"),
        (document(rootfs={"type": "files", "diff_ids": []}), "'layers'"),
        (document(rootfs={"type": "layers"}), r"rootfs\.diff_ids: is required"),
        (document(rootfs={"type": "layers", "diff_ids": "x"}), "must be a list"),
        (document(rootfs={"type": "layers", "diff_ids": [A, 7]}), r"diff_ids\[1\]: 7 is no digest"),
        (document(rootfs={"type": "layers", "diff_ids": ["sha256:" + "A" * 64]}), "lower-case hexadecimal"),
        (document(rootfs={"type": "layers", "diff_ids": ["md5:" + "a" * 32]}), "'md5' is unknown"),
        (document(rootfs={"type": "layers", "diff_ids": [A]}), "2 entries with a layer, but rootfs.diff_ids has 1"),
        (document(created="yesterday"), r"created: 'yesterday' is no time"),
        (document(created="2015-13-31T22:22:56Z"), "is no time"),
        (document(history=[{"empty_layer": 1}]), r"history\[0\]\.empty_layer: must be true or false"),
        (document(history={}), r"history: must be a list"),
        (document(config={"Env": ["a", 1]}), r"config\.config\.Env: must be a list of strings"),
        (document(config={"Cmd": "sh"}), r"Cmd: must be a list"),
        (document(config={"Labels": {"a": 1}}), "an object of strings"),
        (document(config={"Volumes": []}), "Volumes: must be an object"),
        (document(config=[]), "must be an object"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(data, rule):
    with pytest.raises(UnionError, match=rule) as caught:
        ImageConfig.parse(data)
    assert str(caught.value).startswith("image config")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_large_document_is_refused_unread(monkeypatch):
    monkeypatch.setattr(model, "MAX_DOCUMENT", 1000)
    with pytest.raises(UnionError, match="more than 1000"):
        ImageConfig.parse(b"{" * 1001)


def test_layers_and_changes_are_added():
    config = ImageConfig.new("amd64", "linux")
    config = config.with_layer(A, History("2026-01-01T00:00:00Z", "me", "import"))
    config = config.with_layer(None, History("2026-01-02T00:00:00Z", "you", "CMD"))
    config = config.with_layer(B, History("2026-01-03T00:00:00Z", "us"))
    assert config.diff_ids == (A, B)
    assert [each.empty_layer for each in config.history] == [False, True, False]
    assert (config.created, config.author) == ("2026-01-03T00:00:00Z", "us")
    assert config.upto(2) is config
    one = config.upto(1)
    assert (one.diff_ids, one.history, one.created, one.author) == (
        (A,),
        config.history[:1],
        "2026-01-01T00:00:00Z",
        "me",
    )
    assert (config.upto(0).diff_ids, config.upto(0).history) == ((), ())
    for each in (0, 1, 2):
        ImageConfig.parse(config.upto(each).to_bytes())
    with pytest.raises(ValueError, match="2 layers, not 3"):
        config.upto(3)
    with pytest.raises(UnionError, match="diff ID"):
        config.with_layer("x", History())


def test_layers_without_history_get_empty_entries():
    bare = attrs.evolve(ImageConfig.new("amd64", "linux"), diff_ids=(A, B))
    config = bare.with_layer(C, History(created_by="x"))
    assert config.history == (History(), History(), History(created_by="x"))
    assert bare.upto(1).diff_ids == (A,)


def test_a_config_whose_history_is_wrong_is_not_written():
    with pytest.raises(UnionError, match="1 entries with a layer"):
        attrs.evolve(ImageConfig.new("a", "b"), history=(History(),)).to_bytes()


def test_chain_ids_are_as_the_specification_says():
    two = "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    three = "sha256:" + hashlib.sha256(f"{two} {C}".encode()).hexdigest()
    assert chain_ids([A, B, C]) == (A, two, three)
    assert chain_ids([]) == ()


MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": model.MEDIA_TYPE_MANIFEST,
    "config": {"mediaType": model.MEDIA_TYPE_CONFIG, "digest": A, "size": 7023},
    "layers": [
        {"mediaType": model.MEDIA_TYPE_LAYER, "digest": B, "size": 32654, "annotations": {"a": "b"}, "urls": ["x"]},
        {"mediaType": model.MEDIA_TYPE_LAYER_GZIP, "digest": C, "size": 0},
    ],
    "subject": {"mediaType": "x/y", "digest": C, "size": 1},
    "annotations": {"com.example.key1": "value1"},
}


def manifest(**changes) -> bytes:
    return json.dumps({**MANIFEST, **changes}).encode()


def test_a_manifest_comes_back_whole():
    found = Manifest.parse(manifest())
    assert json.loads(found.to_bytes()) == MANIFEST
    assert Manifest.parse(found.to_bytes()) == found
    assert found.layers[0] == Descriptor(model.MEDIA_TYPE_LAYER, B, 32654, {"a": "b"}, {"urls": ["x"]})
    assert digest_of(found.to_bytes()) == "sha256:b2a382b6c0bfa307e43765d9bdbdea18907b710750263c6023956be6f075c518"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"schemaVersion": 1}, "schemaVersion: must be 2"),
        ({"mediaType": model.MEDIA_TYPE_INDEX}, "no image manifest"),
        ({"manifests": []}, "as an index has"),
        ({"layers": None}, "layers: is required"),
        ({"layers": [{}]}, r"layers\[0\]\.mediaType: is required"),
        ({"config": {**MANIFEST["config"], "size": -1}}, r"config\.size: must be a size"),
        ({"config": {**MANIFEST["config"], "size": True}}, r"config\.size: must be a size"),
        ({"config": {**MANIFEST["config"], "size": 1 << 63}}, r"config\.size: must be a size"),
        ({"config": {**MANIFEST["config"], "digest": "../../etc/passwd"}}, r"config\.digest: .* is no digest"),
        ({"config": {**MANIFEST["config"], "digest": "sha256:" + "0" * 63}}, "no sha256"),
        ({"annotations": {"a": []}}, "an object of strings"),
    ],
)
def test_a_wrong_manifest_is_refused(changes, rule):
    with pytest.raises(UnionError, match=rule):
        Manifest.parse(manifest(**changes))


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-21T07:00:00.123456789Z", 1795244400_123456789),
        ("2026-11-21T09:00:00.5+02:00", 1795244400_500000000),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("0001-01-01T00:00:00Z", -62135596800 * 10**9),
        ("2016-12-31T23:59:60Z", 1483228800 * 10**9),
        ("2026-11-21t07:00:00z", 1795244400 * 10**9),
    ],
)
def test_times(text, ns):
    assert time_of(text) == ns


@given(st.integers(time_of("0001-01-01T00:00:00Z"), time_of("9999-12-31T23:59:59.999999999Z")))
def test_times_are_written_as_they_are_read(ns):
    text = time_text(ns)
    assert time_of(text) == ns
    assert text.endswith("Z")
    assert not text.endswith("0Z") or "." not in text


def test_times_of_no_calendar_are_refused():
    with pytest.raises(ValueError, match="outside the years"):
        time_text(10**30)


def test_this_machine_has_a_platform():
    architecture, system, _ = this_platform()
    assert system == "linux"
    assert {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, architecture) == architecture


# Other programs


def layout(directory: Path) -> list[bytes]:
    """An OCI layout with an image of two layers, tagged `it`; the archives of the layers."""
    first = packed(
        [
            (Entry(b"", DT_DIR, 0o755), b""),
            (Entry(b"etc", DT_DIR, 0o755, mtime_ns=10**18), b""),
            (Entry(b"etc/gone", DT_REG, 0o644, size=1), b"x"),
            (Entry(b"etc/kept", DT_REG, 0o4755, 7, 8, 1_700_000_000_123_456_789, 5), b"hello"),
            (Entry(b"hidden", DT_DIR, 0o755), b""),
            (Entry(b"hidden/a", DT_REG, 0o644), b""),
        ]
    )
    second = packed(
        [
            (Entry(b"etc", DT_DIR, 0o711, mtime_ns=10**18), b""),
            (Entry(b"etc/gone", DT_WHT), b""),
            (Entry(b"etc/" + b"n" * 200, DT_REG, 0o600, size=3, xattrs=((b"user.x", b"\0\xff"),)), b"new"),
            (Entry(b"etc/same", DT_REG, 0o600, hardlink=b"etc/" + b"n" * 200), b""),
            (Entry(b"hidden", DT_DIR, 0o755, opaque=True), b""),
            (Entry(b"hidden/b", DT_LNK, 0o777, target=b"../etc"), b""),
        ]
    )
    config = ImageConfig.new(*this_platform())
    for data in (first, second):
        config = config.with_layer(digest_of(data), History("2026-11-21T07:00:00.5Z", "me", "test", "caf\xe9"))
    config = attrs.evolve(config, run=RunConfig(env=("A=b",), cmd=("sh",), labels={"l": "m"}))
    raw = config.to_bytes()
    described = tuple(Descriptor.to(data, model.MEDIA_TYPE_LAYER) for data in (first, second))
    top = Manifest(Descriptor.to(raw, model.MEDIA_TYPE_CONFIG), described).to_bytes()
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in (first, second, raw, top):
        (blobs / hashlib.sha256(data).hexdigest()).write_bytes(data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    tagged = attrs.evolve(
        Descriptor.to(top, model.MEDIA_TYPE_MANIFEST), annotations={"org.opencontainers.image.ref.name": "it"}
    )
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged.value()]}))
    return [first, second]


@pytest.mark.needs("skopeo")
def test_skopeo_reads_an_image(tmp_path: Path):
    layout(tmp_path / "image")
    command = ["skopeo", "inspect", f"oci:{tmp_path}/image:it"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["Env"] == ["A=b"]
    assert found["Labels"] == {"l": "m"}
    assert found["Created"] == "2026-11-21T07:00:00.5Z"
    assert found["Architecture"] == this_platform()[0]
    copied = tmp_path / "copy"
    policy = tmp_path / "policy.json"
    policy.write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
    command = ["skopeo", "--policy", str(policy), "copy", f"oci:{tmp_path}/image:it", f"oci:{copied}:it"]
    subprocess.run(command, capture_output=True, check=True)
    assert len(list((copied / "blobs" / "sha256").iterdir())) == 4


@pytest.mark.root
@pytest.mark.needs("umoci")
def test_umoci_unpacks_an_image(scratch: Path):
    layout(scratch / "image")
    command = ["umoci", "unpack", "--image", f"{scratch}/image:it", str(scratch / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    root = scratch / "bundle" / "rootfs"
    long = "etc/" + "n" * 200
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == sorted(
        ["etc", "etc/kept", "etc/same", long, "hidden", "hidden/b"]
    )
    kept = (root / "etc/kept").stat()
    assert (stat.S_IMODE(kept.st_mode), kept.st_uid, kept.st_gid, kept.st_mtime_ns) == (
        0o4755,
        7,
        8,
        1_700_000_000_123_456_789,
    )
    assert os.path.samefile(root / long, root / "etc/same")
    assert os.getxattr(root / long, "user.x") == b"\0\xff"
    assert os.readlink(root / "hidden/b") == "../etc"
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o711
