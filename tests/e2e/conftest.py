"""Real servers for the tests in this folder; without them the tests are skipped loudly, and fail in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.dovecot import PrivateDovecot
from sidecar.demo.postfix import PrivatePostfix

HERE = Path(__file__).parent
IN_CI = bool(os.environ.get("CI"))
NOT_IN_A_CLONE = "lies beside the repository, not in it"
"""the one reason for which a test may be skipped in CI as well"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return failed_if_skipped_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return failed_if_skipped_in_ci((yield))


def failed_if_skipped_in_ci(report: Any) -> Any:
    """A green CI must mean that the real servers were really used, whatever made a test skip."""
    may_be_absent = NOT_IN_A_CLONE in str(report.longrepr)
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and not may_be_absent:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI must not do: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def require_servers() -> None:
    """Skip when a private Postfix or Dovecot cannot run here."""
    reasons = [PrivatePostfix.why_unavailable(), PrivateDovecot.why_unavailable()]
    if any(reasons):
        pytest.skip(f"NOT TESTED: {'; '.join(reason for reason in reasons if reason)}")


@pytest.fixture
def start_dovecot(require_servers: None, server_directory: Path) -> Iterator[Callable[..., PrivateDovecot]]:
    """Start a Dovecot with the options given; it ends with the test."""
    with ExitStack() as running:

        def start(**options: Any) -> PrivateDovecot:
            return running.enter_context(PrivateDovecot(server_directory, **options))

        yield start


@pytest.fixture
def start_postfix(require_servers: None, server_directory: Path) -> Iterator[Callable[..., PrivatePostfix]]:
    """Start a Postfix with the options given; it ends with the test."""
    with ExitStack() as running:

        def start(**options: Any) -> PrivatePostfix:
            return running.enter_context(PrivatePostfix(server_directory, **options))

        yield start
