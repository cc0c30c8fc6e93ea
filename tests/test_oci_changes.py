"""docker commit's --change, and the language of Dockerfiles that it is made of."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from unionfs.errors import UnionError
from unionfs.oci.changes import DEFAULT_PATH, apply_change, apply_changes, command_line, environment
from unionfs.oci.dockerfile import Instruction, expand, parse_instructions, split_pairs, split_words
from unionfs.oci.model import ImageConfig, RunConfig

BASE = ImageConfig.new("amd64", "linux")
RUN = RunConfig(
    user="root",
    exposed_ports=("80/tcp",),
    env=("PATH=/bin", "A=1"),
    entrypoint=("/entry",),
    cmd=("old",),
    volumes=("/data",),
    working_dir="/work",
    labels={"a": "b"},
    on_build=("RUN x",),
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('CMD ["/bin/sh", "-l"]', {"cmd": ("/bin/sh", "-l")}),
        ("cmd echo $A 'b'", {"cmd": ("/bin/sh", "-c", "echo $A 'b'")}),
        ("CMD []", {"cmd": ()}),
        ("CMD [not json]", {"cmd": ("/bin/sh", "-c", "[not json]")}),
        ("CMD ['single']", {"cmd": ("/bin/sh", "-c", "['single']")}),
        ("CMD one \\\n  two", {"cmd": ("/bin/sh", "-c", "one   two")}),
        ('ENTRYPOINT ["/x"]', {"entrypoint": ("/x",), "cmd": None}),
        ("ENTRYPOINT exec top", {"entrypoint": ("/bin/sh", "-c", "exec top"), "cmd": None}),
        ("ENTRYPOINT []", {"entrypoint": None, "cmd": None}),
        ("ENV B=2", {"env": ("PATH=/bin", "A=1", "B=2")}),
        ("ENV A=2 B=$A", {"env": ("PATH=/bin", "A=2", "B=1")}),
        ("ENV PATH=/x:$PATH", {"env": ("PATH=/x:/bin", "A=1")}),
        ("ENV B=\"two words\" C='$A' D=a\\ b", {"env": ("PATH=/bin", "A=1", "B=two words", "C=$A", "D=a b")}),
        ("ENV B=", {"env": ("PATH=/bin", "A=1", "B=")}),
        ("ENV B=x=y", {"env": ("PATH=/bin", "A=1", "B=x=y")}),
        ("ENV B two words $A", {"env": ("PATH=/bin", "A=1", "B=two words 1")}),
        ("ENV ONE TWO= THREE=x", {"env": ("PATH=/bin", "A=1", "ONE=TWO= THREE=x")}),
        ("EXPOSE 443", {"exposed_ports": ("443/tcp", "80/tcp")}),
        ("EXPOSE 53/UDP 80/tcp", {"exposed_ports": ("53/udp", "80/tcp")}),
        ("EXPOSE 7000-7002/sctp", {"exposed_ports": ("7000/sctp", "7001/sctp", "7002/sctp", "80/tcp")}),
        ("EXPOSE $A", {"exposed_ports": ("1/tcp", "80/tcp")}),
        ('LABEL "com.example.x"="y z" a=c', {"labels": {"a": "c", "com.example.x": "y z"}}),
        ("LABEL multi=a\\\nb", {"labels": {"a": "b", "multi": "ab"}}),
        ("ONBUILD RUN echo $A", {"on_build": ("RUN x", "RUN echo $A")}),
        ("STOPSIGNAL SIGTERM", {"stop_signal": "SIGTERM"}),
        ("STOPSIGNAL kill", {"stop_signal": "kill"}),
        ("STOPSIGNAL 9", {"stop_signal": "9"}),
        ("STOPSIGNAL SIGRTMIN+3", {"stop_signal": "SIGRTMIN+3"}),
        ("USER app:app", {"user": "app:app"}),
        ("USER ${NOBODY:-me}", {"user": "me"}),
        ("VOLUME /x /data", {"volumes": ("/data", "/x")}),
        ('VOLUME ["/with space"]', {"volumes": ("/data", "/with space")}),
        ("WORKDIR /a/../b//c/", {"working_dir": "/b/c"}),
        ("WORKDIR sub/$A", {"working_dir": "/work/sub/1"}),
        ("WORKDIR //x", {"working_dir": "/x"}),
    ],
)
def test_changes(change: str, expected: dict[str, Any]):
    config = attrs.evolve(BASE, run=RUN)
    changed = apply_change(config, change)
    assert changed.run == attrs.evolve(RUN, **expected)
    assert changed == attrs.evolve(config, run=changed.run)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("", "empty"),
        ("# CMD x", "empty"),
        ("FROM x", "FROM can't be changed here; CMD, ENTRYPOINT"),
        ("RUN x", "RUN can't be changed here"),
        ("MAKE x", "MAKE is no instruction"),
        ("CMD", "CMD needs arguments"),
        ("CMD [1]", "must be strings"),
        ('ENTRYPOINT ["a", []]', "must be strings"),
        ("ENV A", "'A' has no value"),
        ("ENV A=1 B", "no '=' in 'B'"),
        ("ENV =1", "a name is empty"),
        ("ENV A='1", "not closed"),
        ('LABEL A="1', "not closed"),
        ("ENV A=${B", "'}' is missing|takes"),
        ("ENV A=${}", "without a name"),
        ("ENV A=${B:x}", "takes :-, :\\+ and :\\? only"),
        ("USER ${B:?nobody is set}", "B: nobody is set"),
        ("EXPOSE x", "'x' is no port"),
        ("EXPOSE 80/http", "no port"),
        ("EXPOSE 65536", "up to 65535"),
        ("EXPOSE 20-10", "up to 65535"),
        ("ONBUILD FROM x", "ONBUILD takes one"),
        ("ONBUILD ONBUILD RUN x", "ONBUILD takes one"),
        ("ONBUILD nonsense", "NONSENSE is no instruction"),
        ("STOPSIGNAL SIGNOT", "no signal"),
        ("STOPSIGNAL 0", "no signal"),
        ("STOPSIGNAL 65", "no signal"),
        ("USER $NOBODY", "USER needs an argument"),
        ('VOLUME ["", "/x"]', "path is empty"),
        ("VOLUME []", "path is empty"),
        ("USER a\nMAKE x", "MAKE is no instruction"),
    ],
)
def test_what_is_no_change(change, rule):
    with pytest.raises(UnionError, match=rule) as caught:
        apply_change(BASE, change)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("change ")


def test_a_new_cmd_stays_with_a_new_entrypoint():
    config = attrs.evolve(BASE, run=RUN)
    for changes in (['CMD ["new"]', 'ENTRYPOINT ["/x"]'], ['ENTRYPOINT ["/x"]', 'CMD ["new"]']):
        run = apply_changes(config, changes).run
        assert (run.entrypoint, run.cmd) == (("/x",), ("new",))
    assert apply_changes(config, ['ENTRYPOINT ["/x"]']).run.cmd is None
    assert apply_changes(config, []) == config


def test_the_shell_of_the_image_runs_commands():
    assert command_line(attrs.evolve(RUN, shell=("/bin/bash", "-ec")), "a b") == ("/bin/bash", "-ec", "a b")


def test_path_is_set_in_any_container():
    assert environment(RunConfig()) == {"PATH": DEFAULT_PATH}
    assert environment(RUN) == {"PATH": "/bin", "A": "1"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a$B-c", "abee-c"),
        ("${B}x", "beex"),
        ("$Bx", ""),
        ("\\$B", "$B"),
        ("'$B'", "$B"),
        ('"$B \\" \\$B \\x \\\\"', 'bee " $B \\x \\'),
        ("a\\", "a"),
        ("$", "$"),
        ("$1", "$1"),
        ("${NO:-x}${NO-y}", "xy"),
        ("${EMPTY:-x}${EMPTY-y}", "x"),
        ("${B:+x}${NO:+y}${EMPTY:+z}${EMPTY+w}", "xw"),
        ("${NO:-$B}", "bee"),
        ("${NO:-${NO:-deep}}", "deep"),
        ('${NO:-"a}b"}', "a}b"),
        ("${B:?no}", "bee"),
        ("caf\xe9", "caf\xe9"),
    ],
)
def test_words_are_expanded(word, expected):
    assert expand(word, {"B": "bee", "EMPTY": ""}) == expected


def test_words_and_pairs_are_split():
    assert split_words(" a  'b c' d\\ e \"f 'g\" h\t") == ["a", "'b c'", "d\\ e", '"f \'g"', "h"]
    assert split_words("") == []
    assert split_pairs("a=1 b='2 3'") == [("a", "1"), ("b", "'2 3'")]


def test_instructions_are_read_from_text():
    text = "# syntax\nFROM x\n\nRUN a \\\n  # between\n\n  b\\\n  c\n  env A=1\nCMD last \\"
    assert parse_instructions(text) == [
        Instruction("FROM", "x", 2),
        Instruction("RUN", "a   b  c", 4),
        Instruction("ENV", "A=1", 9),
        Instruction("CMD", "last", 10),
    ]
