"""Changes to an image's config in a Dockerfile's words, as ``docker commit --change`` takes them.

Source: docker commit's manual; the Dockerfile reference, each instruction by its name. As there, variables of the
config's environment stand for their values, except in ``CMD``, ``ENTRYPOINT`` and ``ONBUILD``.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable, Iterable, Mapping

import attrs

from unionfs.errors import UnionError
from unionfs.oci.dockerfile import Instruction, exec_form, expand, parse_instructions, split_pairs, split_words
from unionfs.oci.model import ImageConfig, RunConfig

DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""``PATH`` in a container whose image sets none."""

_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/([A-Za-z]+))?", re.ASCII)
_REALTIME = re.compile(r"RTMIN(\+\d{1,2})?|RTMAX(-\d{1,2})?", re.ASCII)


def apply_change(config: ImageConfig, change: str) -> ImageConfig:
    """``config`` with ``change``, one instruction, made in it: ``CMD ["/bin/sh"]``.

    An ``ENTRYPOINT`` takes away the ``CMD`` of before, as it was meant for another program: of several changes,
    ``apply_changes`` knows which ``CMD`` is new. ``UnionError`` in one line for what is no such instruction.
    """
    return apply_changes(config, [change])


def apply_changes(config: ImageConfig, changes: Iterable[str]) -> ImageConfig:
    """``config`` with all ``changes`` made in it, in their order. A ``CMD`` among them stays with an ``ENTRYPOINT``."""
    run = config.run
    has_cmd = False
    for change in changes:
        try:
            instructions = parse_instructions(change)
            if not instructions:
                raise ValueError("it is empty")
            for instruction in instructions:
                make = _CHANGES.get(instruction.keyword)
                if make is None:
                    raise ValueError(f"{instruction.keyword} can't be changed here; {', '.join(_CHANGES)} can")
                if not instruction.text:
                    raise ValueError(f"{instruction.keyword} needs arguments")
                run = make(run, instruction)
                has_cmd = has_cmd or instruction.keyword == "CMD"
                if instruction.keyword == "ENTRYPOINT" and not has_cmd:
                    run = attrs.evolve(run, cmd=None)
        except ValueError as error:
            raise UnionError(f"change {change!r}: {error}") from None
    return attrs.evolve(config, run=run)


def environment(run: RunConfig) -> dict[str, str]:
    """The environment that a container of ``run`` has, with Docker's ``PATH`` where it sets none."""
    found = {"PATH": DEFAULT_PATH}
    for each in run.env:
        name, _, value = each.partition("=")
        found[name] = value
    return found


def command_line(run: RunConfig, text: str) -> tuple[str, ...]:
    """The words of a command in exec form, or of the shell that runs one in shell form."""
    words = exec_form(text)
    return (*(run.shell or DEFAULT_SHELL), text) if words is None else words


def _cmd(run: RunConfig, instruction: Instruction) -> RunConfig:
    return attrs.evolve(run, cmd=command_line(run, instruction.text))


def _entrypoint(run: RunConfig, instruction: Instruction) -> RunConfig:
    return attrs.evolve(run, entrypoint=command_line(run, instruction.text) or None)


def _pairs(run: RunConfig, text: str) -> list[tuple[str, str]]:
    # The variables are those of before, for all pairs.
    variables = environment(run)
    pairs = [(expand(name, variables), expand(value, variables)) for name, value in split_pairs(text)]
    if not all(name for name, _ in pairs):
        raise ValueError("a name is empty")
    return pairs


def _env(run: RunConfig, instruction: Instruction) -> RunConfig:
    env = list(run.env)
    for name, value in _pairs(run, instruction.text):
        at = next((n for n, each in enumerate(env) if each.partition("=")[0] == name), len(env))
        env[at : at + 1] = [f"{name}={value}"]
    return attrs.evolve(run, env=tuple(env))


def _label(run: RunConfig, instruction: Instruction) -> RunConfig:
    return attrs.evolve(run, labels={**run.labels, **dict(_pairs(run, instruction.text))})


def _expose(run: RunConfig, instruction: Instruction) -> RunConfig:
    variables = environment(run)
    ports = set(run.exposed_ports)
    for word in split_words(instruction.text):
        for port in expand(word, variables).split():
            ports.update(_ports(port))
    return attrs.evolve(run, exposed_ports=tuple(sorted(ports)))


def _ports(text: str) -> list[str]:
    match = _PORT.fullmatch(text)
    protocol = (match[3] or "tcp").lower() if match else ""
    if match is None or protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{text!r} is no port[/tcp|udp|sctp]")
    first = int(match[1])
    last = int(match[2] or first)
    if not first <= last <= 65535:
        raise ValueError(f"{text!r} is no port, or range of ports, up to 65535")
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _onbuild(run: RunConfig, instruction: Instruction) -> RunConfig:
    triggers = parse_instructions(instruction.text)
    if len(triggers) != 1 or triggers[0].keyword in ("ONBUILD", "FROM", "MAINTAINER"):
        raise ValueError(f"ONBUILD takes one instruction, and not ONBUILD, FROM or MAINTAINER: {instruction.text!r}")
    return attrs.evolve(run, on_build=(*run.on_build, instruction.text))


def _stopsignal(run: RunConfig, instruction: Instruction) -> RunConfig:
    text = expand(instruction.text, environment(run))
    name = text.upper().removeprefix("SIG")
    number = int(text) if re.fullmatch(r"\d{1,3}", text, re.ASCII) else 0
    known = f"SIG{name}" in signal.Signals.__members__ or _REALTIME.fullmatch(name) is not None
    if not known and not 0 < number <= signal.SIGRTMAX:
        raise ValueError(f"{text!r} is no signal")
    return attrs.evolve(run, stop_signal=text)


def _user(run: RunConfig, instruction: Instruction) -> RunConfig:
    return attrs.evolve(run, user=_whole(run, instruction))


def _volume(run: RunConfig, instruction: Instruction) -> RunConfig:
    variables = environment(run)
    words = exec_form(instruction.text)
    paths = [expand(word, variables).strip() for word in (split_words(instruction.text) if words is None else words)]
    if not paths or not all(paths):
        raise ValueError("a volume's path is empty")
    return attrs.evolve(run, volumes=tuple(sorted({*run.volumes, *paths})))


def _workdir(run: RunConfig, instruction: Instruction) -> RunConfig:
    path = posixpath.normpath(posixpath.join("/", run.working_dir, _whole(run, instruction)))
    return attrs.evolve(run, working_dir=re.sub("^/+", "/", path))


def _whole(run: RunConfig, instruction: Instruction) -> str:
    text = expand(instruction.text, environment(run))
    if not text:
        raise ValueError(f"{instruction.keyword} needs an argument")
    return text


_CHANGES: Mapping[str, Callable[[RunConfig, Instruction], RunConfig]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
