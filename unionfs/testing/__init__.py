"""Conformance suites that take a factory, for whoever writes a layer or an engine. They need pytest."""

import pytest

# So that a failing assertion in a suite tells its values, as one in a test does.
pytest.register_assert_rewrite(
    *[f"{__name__}.{suite}" for suite in ("layer", "writable", "writable_metadata", "union", "engine")]
)
