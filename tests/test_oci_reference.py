"""Names of images, by the grammar of distribution/reference."""

from __future__ import annotations

import pytest

from unionfs.errors import UnionError
from unionfs.oci.reference import Name, is_digest, is_hex_prefix, parse_name, split_digest

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "repository", "tag"),
    [
        ("debian", "debian", "latest"),
        ("debian:12", "debian", "12"),
        ("debian:12-slim_x.Y", "debian", "12-slim_x.Y"),
        ("_:_".replace("_", "a"), "a", "a"),
        ("a:_x", "a", "_x"),
        ("library/debian", "library/debian", "latest"),
        ("localhost/a", "localhost/a", "latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b", "c"),
        ("registry.example.com:5000/a", "registry.example.com:5000/a", "latest"),
        ("Registry.Example.com/a", "Registry.Example.com/a", "latest"),
        ("Host/a", "Host/a", "latest"),
        ("127.0.0.1/a", "127.0.0.1/a", "latest"),
        ("[2001:db8::1]:5000/a:t", "[2001:db8::1]:5000/a", "t"),
        ("a__b/c-d/e---f/g.h_i", "a__b/c-d/e---f/g.h_i", "latest"),
        ("a.b", "a.b", "latest"),
        ("5000", "5000", "latest"),
        ("a/5000:5000", "a/5000", "5000"),
        ("a" * 255, "a" * 255, "latest"),
        ("a:" + "t" * 128, "a", "t" * 128),
        ("f" * 63, "f" * 63, "latest"),
    ],
)
def test_names(text, repository, tag):
    name = parse_name(text)
    assert name == Name(repository, tag)
    assert str(name) == f"{repository}:{tag}"
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "missing"),
        (":tag", "missing"),
        ("Debian", "lower case"),
        ("a/B", "lower case"),
        ("a/b/C:x", "lower case"),
        ("a:", "tag ''"),
        ("a:.x", r"tag '\.x'"),
        ("a:-x", "tag '-x'"),
        ("a:b c", "tag 'b c'"),
        ("a:" + "t" * 129, "1 to 128"),
        ("a:b:c", "'a:b'"),
        ("a b", "'a b'"),
        ("a//b", "''"),
        ("/a", "''"),
        ("a/", "''"),
        ("-a", "'-a'"),
        ("a-", "'a-'"),
        ("a..b", r"'a\.\.b'"),
        ("a___b", "'a___b'"),
        ("a._b", r"'a\._b'"),
        ("../a", r"no host|'\.\.'"),
        ("caf\xe9", "must be of"),
        ("a\n", r"'a\\n'"),
        ("-x.y/a", "no host"),
        ("x.y:/a", "no host"),
        ("x.y:z/a", "no host"),
        ("a" * 256, "at most 255"),
        ("f" * 64, "an id"),
        (f"a@{DIGEST}", "has a digest"),
        (DIGEST, "an id"),
    ],
)
def test_what_is_no_name(text, rule):
    with pytest.raises(UnionError, match=rule) as caught:
        parse_name(text)
    assert "\n" not in str(caught.value)


def test_digests_are_told_apart():
    assert split_digest(f"a/b:c@{DIGEST}") == ("a/b:c", DIGEST)
    assert split_digest(f"@{DIGEST}") == ("", DIGEST)
    assert split_digest("a:b") is None
    with pytest.raises(UnionError, match="no digest"):
        split_digest("a@b")
    with pytest.raises(UnionError, match="lower case"):
        split_digest(f"A@{DIGEST}")


@pytest.mark.parametrize(
    ("text", "digest", "prefix"),
    [
        (DIGEST, True, True),
        (DIGEST[:-1], False, True),
        (DIGEST + "0", False, False),
        (DIGEST.upper(), False, False),
        (DIGEST[7:], False, True),
        ("sha512:" + "a" * 128, True, False),
        ("md5:" + "a" * 32, False, False),
        ("f", False, True),
        ("sha256:", False, False),
        ("", False, False),
        ("xyz", False, False),
    ],
)
def test_digests_and_their_beginnings(text, digest, prefix):
    assert (is_digest(text), is_hex_prefix(text)) == (digest, prefix)
