"""Conformance suites that take a factory, for whoever writes a layer or an engine. They need pytest."""

import pytest

# So that a failing assertion in a suite tells its values, as one in a test does.
_SUITES = ("layer", "writable", "writable_metadata", "union", "engine")
_POSIX = ("access", "attributes", "data", "listing", "locks", "modes", "names", "open", "rename", "times")
pytest.register_assert_rewrite(
    *[f"{__name__}.{suite}" for suite in _SUITES], *[f"{__name__}.engine_posix_{part}" for part in _POSIX]
)
