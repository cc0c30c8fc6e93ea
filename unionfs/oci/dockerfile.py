"""The language of Dockerfiles: instructions, words, quotes, variables.

Source: the Dockerfile reference, "Format", "Shell and exec form", "Environment replacement", "ENV", "LABEL".
Every function raises ``ValueError`` with the rule that is broken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import attrs

# fmt: off
KEYWORDS = frozenset([
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
])
# fmt: on

_CONTINUED = re.compile(r"\\[ \t]*$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@attrs.frozen
class Instruction:
    """One instruction."""

    keyword: str
    """In capitals."""
    text: str
    """What follows it, on one line."""
    line: int = 1
    """Where it begins, counted from 1."""


def parse_instructions(text: str) -> list[Instruction]:
    """The instructions in ``text``: comments and empty lines left out, continued lines joined."""
    found = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not parts:
            start = number
        match = _CONTINUED.search(line)
        parts.append(line[: match.start()] if match else line)
        if not match:
            found.append(_instruction("".join(parts), start))
            parts = []
    if parts:
        found.append(_instruction("".join(parts), start))
    return found


def _instruction(line: str, number: int) -> Instruction:
    keyword, *rest = line.split(None, 1)
    keyword = keyword.upper()
    if keyword not in KEYWORDS:
        raise ValueError(f"{keyword} is no instruction of a Dockerfile")
    return Instruction(keyword, rest[0].strip() if rest else "", number)


def exec_form(text: str) -> tuple[str, ...] | None:
    """The words of a JSON array; ``None`` where ``text`` is none, and so in shell form."""
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(word, str) for word in words):
        raise ValueError("all elements of the JSON array must be strings")
    return tuple(words)


def split_words(text: str) -> list[str]:
    """``text`` at white space that is in no quotes and not escaped; quotes and backslashes stay in the words."""
    words = []
    word = ""
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\" and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            at += 2
            continue
        if quote:
            if char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char.isspace():
            if word:
                words.append(word)
            word = ""
            at += 1
            continue
        word += char
        at += 1
    if word:
        words.append(word)
    return words


def split_pairs(text: str) -> list[tuple[str, str]]:
    """Names and values of ``NAME=value …``, or of the old form, ``NAME value``; quotes and variables stay in them."""
    words = split_words(text)
    if not words:
        raise ValueError("needs NAME=value")
    if "=" not in words[0]:
        name, *value = text.split(None, 1)
        if not value:
            raise ValueError(f"{name!r} has no value: NAME=value is needed")
        return [(name, value[0])]
    pairs = []
    for word in words:
        name, equals, rest = word.partition("=")
        if not equals:
            raise ValueError(f"no '=' in {word!r}: NAME=value is needed, with quotes around spaces")
        pairs.append((name, rest))
    return pairs


def expand(word: str, variables: Mapping[str, str]) -> str:
    """``word`` without its quotes and backslashes, with the values of variables; one that is not set is empty.

    ``$NAME``, ``${NAME}``, and ``${NAME:-word}``, ``:+``, ``:?``, each without the colon too. In single quotes all
    stands for itself; in double quotes a backslash escapes ``"``, ``$`` and itself only.
    """
    return _Expansion(word, variables).until("")


class _Expansion:
    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        self.text = text
        self.variables = variables
        self.at = 0

    def until(self, end: str) -> str:
        """What the text gives up to the character ``end``, which is passed over; or to its own end."""
        found = ""
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if end and char == end:
                return found
            if char == "'":
                close = self.text.find("'", self.at)
                if close < 0:
                    raise ValueError(f"a single quote in {self.text!r} is not closed")
                found += self.text[self.at : close]
                self.at = close + 1
            elif char == '"':
                found += self.quoted()
            elif char == "$":
                found += self.variable()
            elif char == "\\":
                # One at the end of everything stands for nothing.
                found += self.text[self.at : self.at + 1]
                self.at += 1
            else:
                found += char
        if end:
            raise ValueError(f"'{end}' is missing in {self.text!r}")
        return found

    def quoted(self) -> str:
        found = ""
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == '"':
                return found
            if char == "$":
                found += self.variable()
            elif char == "\\" and self.text[self.at : self.at + 1] in ('"', "$", "\\"):
                found += self.text[self.at]
                self.at += 1
            else:
                found += char
        raise ValueError(f"a double quote in {self.text!r} is not closed")

    def variable(self) -> str:
        if self.text[self.at : self.at + 1] != "{":
            match = _NAME.match(self.text, self.at)
            if match is None:
                return "$"
            self.at = match.end()
            return self.variables.get(match[0], "")
        match = _NAME.match(self.text, self.at + 1)
        if match is None:
            raise ValueError(f"'${{' without a name in {self.text!r}")
        self.at = match.end()
        value = self.variables.get(match[0])
        operator = ""
        while len(operator) < 2 and self.at < len(self.text) and self.text[self.at] in ":-+?":
            operator += self.text[self.at]
            self.at += 1
            if operator != ":":
                break
        if not operator:
            if self.text[self.at : self.at + 1] != "}":
                raise ValueError(f"{self.text!r}: ${{{match[0]}…}} takes :-, :+ and :? only")
            self.at += 1
            return value or ""
        if operator == ":":
            raise ValueError(f"{self.text!r}: ${{{match[0]}:…}} takes :-, :+ and :? only")
        word = self.until("}")
        there = bool(value) if operator[0] == ":" else value is not None
        if operator[-1] == "+":
            return word if there else ""
        if not there and operator[-1] == "?":
            raise ValueError(f"{match[0]}: {word or 'is not set'}")
        return (value or "") if there else word
