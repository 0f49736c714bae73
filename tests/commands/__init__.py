"""The commands, run as people and schedulers run them."""

import pytest

pytest.register_assert_rewrite("tests.commands.process")
