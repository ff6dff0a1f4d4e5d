"""What deploy/ offers works as it stands: the servers' own tools read it, and it says what the code says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.config import (
    Config,
    ImapConfig,
    LmtpConfig,
    MetricsConfig,
    MilterConfig,
    RetentionConfig,
    all_keys,
    reloadable_keys,
)

RULE = re.compile(r"(?m)^#(?=[\[#a-z])|^#$")
"""what stands before the lines of the rule that mailkeep.toml shows and does not have"""
DEPLOY = Path(__file__).parents[2] / "deploy"
SNIPPETS = ("postfix-lmtp.cf", "postfix-milter.cf", "postfix-both.cf")
SETTINGS = (*SNIPPETS, "mailkeep.toml", "mailkeep.service", "mailkeep.sysusers.conf", "dovecot-lmtp.conf",
            "dovecot-restore.conf", "prometheus-scrape.yml")  # fmt: skip


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A server's own tool. Without it the test is skipped on a developer's machine and fails in CI."""
    found = shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{tool} is not installed, and CI must not pass without this test")
        pytest.skip(f"NOT TESTED: {tool} is not installed")
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)


def code(name: str) -> str:
    """A file without its comments and blank lines."""
    return "".join(
        f"{line}\n"
        for line in (DEPLOY / name).read_text().splitlines()
        if line and not line.lstrip().startswith("#")
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_each_file_says_what_it_is_where_it_goes_and_how_to_undo_it(name: str) -> None:
    opening = re.match(r"(#.*\n)+", (DEPLOY / name).read_text())
    assert opening is not None
    for word in ("# Goes ", "# To undo: "):
        assert word in opening[0]


def test_the_example_is_the_defaults() -> None:
    defaults = Config(lmtp=LmtpConfig(), milter=MilterConfig(), metrics=MetricsConfig(), imap=ImapConfig())
    assert Config.load(DEPLOY / "mailkeep.toml") == defaults
    with_rule = RULE.sub("", (DEPLOY / "mailkeep.toml").read_text())
    assert Config.parse(with_rule, "mailkeep.toml") == replace(defaults, retention=(RetentionConfig(),))


def test_the_example_shows_every_key_with_its_default_and_help() -> None:
    shown, section, comment = {}, "", ""
    for line in RULE.sub("", (DEPLOY / "mailkeep.toml").read_text()).splitlines():
        if line.startswith("#"):
            comment += line.removeprefix("# ")
        elif line.startswith("["):
            section, comment = line.strip("[]"), ""
        elif line:
            key, _, default = line.partition(" = ")
            shown[section, key] = (default, comment)
            comment = ""
    expected = {
        (key.section, key.key): (
            key.default,
            key.help + " [reload]" * ((key.section, key.key) in reloadable_keys()),
        )
        for key in all_keys()
    }
    assert shown == expected
    assert list(shown) == list(expected), "in the order of the code"


def test_the_service_is_hardened_and_comes_back() -> None:
    unit = code("mailkeep.service").splitlines()
    for line in (
        "Type=notify",
        "ExecStart=/opt/mailkeep/.venv/bin/mailkeep serve --config /etc/mailkeep/mailkeep.toml",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=always",
        "RestartSec=1",
        "TimeoutStopSec=45",
        "User=mailkeep",
        "StateDirectory=mailkeep",
        "StateDirectoryMode=0700",
        "RuntimeDirectory=mailkeep",
        "NoNewPrivileges=true",
        "ProtectSystem=strict",
        "ProtectHome=true",
        "PrivateTmp=true",
        "PrivateDevices=true",
        "MemoryDenyWriteExecute=true",
        "CapabilityBoundingSet=",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "SystemCallFilter=@system-service",
        "WantedBy=multi-user.target",
    ):
        assert line in unit
    assert any(line.startswith("LimitNOFILE=") for line in unit)
    assert any(line.startswith("WatchdogSec=") for line in unit)


def test_systemd_takes_the_service(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed")
    unit = tmp_path / "mailkeep.service"
    # The program is not installed where the tests run; all else is as it is shipped.
    unit.write_text(
        re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", (DEPLOY / "mailkeep.service").read_text())
    )
    checked = run("systemd-analyze", "verify", "--man=no", unit)
    assert "mailkeep.service" not in checked.stderr
    assert checked.returncode == 0, checked.stderr


def postconf(directory: Path, settings: str) -> subprocess.CompletedProcess[str]:
    """What Postfix makes of a main.cf; unknown parameters and bad syntax come as warnings."""
    (directory / "main.cf").write_text(f"compatibility_level = 3.6\n{settings}")
    (directory / "master.cf").write_text("smtp inet n - n - - smtpd\nlmtp unix - - n - - lmtp\n")
    return run("postconf", "-c", directory, "-n")


def test_postconf_tells_what_it_does_not_know(tmp_path: Path) -> None:
    assert (
        "unused parameter: lmtp_line_lenght_limit"
        in postconf(tmp_path, "lmtp_line_lenght_limit = 0\n").stderr
    )


@pytest.mark.parametrize("name", SNIPPETS)
def test_postfix_reads_the_snippets(name: str, tmp_path: Path) -> None:
    read = postconf(tmp_path, (DEPLOY / name).read_text())
    assert read.stderr == ""
    assert read.returncode == 0
    for line in code(name).splitlines():
        assert line in read.stdout.splitlines()


def test_the_addresses_are_those_of_the_defaults() -> None:
    lmtp, milter = LmtpConfig(), MilterConfig()
    for name in ("postfix-lmtp.cf", "postfix-both.cf"):
        assert f"virtual_transport = lmtp:inet:{lmtp.listen}\n" in code(name)
        assert "lmtp_line_length_limit = 0\n" in code(name)
        assert "lmtp_send_xforward_command = yes\n" in code(name)
    for name in ("postfix-milter.cf", "postfix-both.cf"):
        assert f"smtpd_milters = {{ {milter.listen}, default_action=tempfail, " in code(name)
        timeout = re.search("content_timeout=([0-9]+)s }", code(name))
        assert timeout is not None
        assert int(timeout[1]) > milter.commit_timeout_s
    assert f"- {MetricsConfig().listen}\n" in code("prometheus-scrape.yml")
    assert f"address = {lmtp.downstream.host}\n" in code("dovecot-lmtp.conf")
    assert f"port = {lmtp.downstream.port}\n" in code("dovecot-lmtp.conf")


def test_dovecot_reads_the_snippet(tmp_path: Path) -> None:
    config = tmp_path / "dovecot.conf"
    config.write_text(f"protocols = imap\n{(DEPLOY / 'dovecot-lmtp.conf').read_text()}")
    read = run("doveconf", "-n", "-c", config)
    if read.stdout.startswith("# 2.4"):
        pytest.skip("NOT TESTED: the snippet is for Dovecot 2.3")
    assert read.returncode == 0, read.stderr
    assert "protocols = imap lmtp" in read.stdout
    assert "inet_listener mailkeep {\n    address = 127.0.0.1\n    port = 24\n" in read.stdout


def test_dovecot_reads_the_listener_without_sieve(tmp_path: Path) -> None:
    config = tmp_path / "dovecot.conf"
    config.write_text(f"protocols = imap lmtp\n{code('dovecot-restore.conf')}")
    read = run("doveconf", "-n", "-c", config)
    if read.stdout.startswith("# 2.4"):
        pytest.skip("NOT TESTED: the snippet is for Dovecot 2.3")
    assert read.returncode == 0, read.stderr
    assert "executable = lmtp -o mail_plugins=quota\n" in read.stdout
