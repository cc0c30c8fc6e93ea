"""What Go and OCI call this machine.

Source: image-spec, image-index.md ("Platform Variants"); Go's ``GOARCH`` and ``GOOS``.
"""

from __future__ import annotations

import os

# What uname(2) says, to GOARCH and the variant.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "arm64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "loongarch64": ("loong64", ""),
    "mips64el": ("mips64le", ""),
    "mipsel": ("mipsle", ""),
}
_X86 = {"i386", "i486", "i586", "i686"}


def this_platform() -> tuple[str, str, str]:
    """Architecture, operating system and variant of this machine: ``("amd64", "linux", "")``.

    A machine that Go calls as uname(2) does, or that it does not know, keeps its own name.
    """
    name = os.uname()
    architecture, variant = ("386", "") if name.machine in _X86 else _MACHINES.get(name.machine, (name.machine, ""))
    return architecture, name.sysname.lower(), variant
