"""What is skipped here fails under `make ceph`, as it does in CI for real servers."""

from __future__ import annotations

from tests.e2e.conftest import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]
