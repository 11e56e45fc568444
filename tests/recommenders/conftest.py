"""Failed assertions of the oracles are explained like those of a test."""

import pytest

pytest.register_assert_rewrite(f"{__package__}.oracles")
