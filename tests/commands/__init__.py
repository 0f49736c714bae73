"""Tests of the commands, run as users and schedulers run them."""

import pytest

pytest.register_assert_rewrite("tests.commands.process")
