"""A configuration is read whole, and a slip is answered with its place and a way out."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from sidecar.config import Config, ConfigError, all_keys, load_default, reloadable_changes, reloadable_keys
from sidecar.sections import (
    DrillConfig,
    ImapConfig,
    LmtpConfig,
    MetricsConfig,
    MilterConfig,
    ReplicaConfig,
    RetentionConfig,
    SchedulerConfig,
    SearchConfig,
    StoreConfig,
    WitnessConfig,
)
from sidecar.units import Address
from store.retention import YEAR_US, Rule

LEAST = "[lmtp]\n"


def parse(text: str) -> Config:
    return Config.parse(text, "mk.toml")


def test_the_example_of_the_manual() -> None:
    config = parse(
        """
        [store]
        path = "/srv/keep"
        reserve = "1GiB"
        stream = "mx1"
        [lmtp]
        listen = "unix:/run/mailkeep/lmtp.sock"
        downstream = "[::1]:24"
        socket_mode = "0666"
        delivery_timeout = "2m30s"
        [milter]
        [metrics]
        listen = "127.0.0.1:9000"
        [capture]
        on_failure = "accept"
        [log]
        level = "debug"
        """
    )
    assert config.store.path == Path("/srv/keep")
    assert config.store.reserve_bytes == 1 << 30
    assert config.store.stream_name == "mx1"
    assert config.lmtp is not None
    assert config.lmtp.listen == Address(path="/run/mailkeep/lmtp.sock")
    assert config.lmtp.downstream == Address(host="::1", port=24)
    assert config.lmtp.socket_mode == 0o666
    assert config.lmtp.delivery_timeout_s == 150
    assert config.milter == MilterConfig()
    assert config.metrics == MetricsConfig(listen=Address(host="127.0.0.1", port=9000))
    assert config.capture.on_failure == "accept"
    assert config.spool_path == Path("/srv/keep/spool")
    assert config.log.level == "debug"


def test_defaults_and_absent_sections() -> None:
    config = parse(LEAST)
    assert config == Config(lmtp=LmtpConfig())
    assert config.milter is None
    assert config.metrics is None
    assert config.store == StoreConfig()
    assert config.lmtp is not None
    assert (config.lmtp.idle_timeout_s, config.lmtp.delivery_timeout_s) == (300, 540)
    assert parse("[milter]").lmtp is None


def test_the_tree_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        parse(LEAST).store.compression_level = 9  # type: ignore[misc]  # the point of the test


def test_the_stream_is_named_after_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, name in (("mx1.example.org", "mx1.example.org"), ("-ä /b.", "b"), ("", "mailkeep")):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert StoreConfig().stream_name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[lmpt]", ["no section [lmpt]", "did you mean [lmtp]?"]),
        ("[lmtp]\nlisen = '127.0.0.1:2424'", ["[lmtp] has no key lisen", "did you mean listen?"]),
        ("[lmtp]\nreserve = '1GiB'", ["[lmtp] has no key reserve", "did you mean reserve in [store]?"]),
        ("[lmtp]\nxyzzy = 1", ["[lmtp] has no key xyzzy"]),
        ("downstream = '127.0.0.1:24'\n[lmtp]", ["no key downstream outside", "downstream in [lmtp]?"]),
        ("lmtp = '127.0.0.1:24'", ["lmtp is a section: write [lmtp]"]),
        ("[lmtp]\nidle_timeout = 300", ["[lmtp] idle_timeout = 300: write a duration", '"5m"']),
        ("[lmtp]\nidle_timeout = '5 minutes'", ["[lmtp] idle_timeout: '5 minutes' is not a duration", "10m"]),
        ("[lmtp]\nidle_timeout = '0s'", ["[lmtp] idle_timeout: '0s' is no time at all"]),
        ("[lmtp]\nmax_connections = true", ["max_connections = true: write a whole number from 1 to 10000"]),
        ("[lmtp]\nmax_connections = '9'", ['max_connections = "9": write a whole number']),
        ("[lmtp]\nmax_connections = 0", ["max_connections: 0 is not from 1 to 10000"]),
        ("[lmtp]\nsocket_mode = '999'", ["socket_mode: '999' is not an octal file mode", '"0660"']),
        ("[lmtp]\nsocket_mode = 0o660", ["socket_mode = 432: write an octal file mode", '"0660"']),
        ("[lmtp]\nlisten = 'localhost'", ["listen: 'localhost' is not an address", "127.0.0.1:24"]),
        ("[lmtp]\nlisten = ['127.0.0.1:24']", ["listen = [", "write an address"]),
        ("[lmtp]\nlisten = 2026-01-01", ["listen = ", "2026-01-01", "write an address"]),
        ("[store]\nreserve = '64M'\n[lmtp]", ["[store] reserve: '64M' is not a size", "64MiB"]),
        ("[store]\npack_size = '1KiB'\n[lmtp]", ["[store] pack_size: 1KiB is too little"]),
        ("[store]\npath = 'mail'\n[lmtp]", ["[store] path: 'mail' is not an absolute path"]),
        ("[store]\nstream = '../x'\n[lmtp]", ["[store] stream: '../x' is not a name"]),
        ("[store]\ncompression_level = 23\n[lmtp]", ["compression_level: 23 is not from 1 to 19"]),
        ("[capture]\non_failure = 'drop'\n[lmtp]", ["on_failure: 'drop' is none of tempfail, accept"]),
        ("[store]", ["neither [lmtp] nor [milter]"]),
        ("[lmtp]\nlisten = '0.0.0.0:25'", ["[lmtp] listen: 0.0.0.0:25", "port 25", "RFC 2033"]),
        ("[lmtp]\ndownstream = '127.0.0.1:25'", ["[lmtp] downstream: 127.0.0.1:25", "RFC 2033"]),
        ("[lmtp]\ndownstream = '127.0.0.1:0'", ["no port 0"]),
        ("[lmtp]\ndownstream = '127.0.0.1:2424'", ["[lmtp] downstream", "in a circle"]),
        (
            "[lmtp]\ndelivery_timeout = '10m'",
            ["[lmtp] delivery_timeout", "below 10m", "lmtp_data_done_timeout"],
        ),
        ("[lmtp]\nidle_timeout = '1h'", ["[lmtp] idle_timeout", "below 10m"]),
        ("[lmtp]\nconnect_timeout = '9m'", ["[lmtp] connect_timeout", "below delivery_timeout"]),
        (
            "[milter]\ncommit_timeout = '5m'",
            ["[milter] commit_timeout", "below 5m", "milter_content_timeout"],
        ),
        (
            "[lmtp]\n[metrics]\nlisten='127.0.0.1:2424'",
            ["[metrics] listen: 127.0.0.1:2424 is taken by [lmtp]"],
        ),
        ("[lmtp]\n[retention]\nkeep = '7y'", ["retention may be there several times: write [[retention]]"]),
        ("retention = 7\n[lmtp]", ["retention may be there several times"]),
        ("[lmtp]\n[[retentoin]]\nkeep = '7y'", ["no section [[retentoin]]", "did you mean [[retention]]?"]),
        ("[lmtp]\nkeep = '7y'", ["[lmtp] has no key keep", "did you mean keep in [[retention]]?"]),
        (
            "[lmtp]\n[[retention]]\nto = 'a@b'\n[[retention]]\nkep = '7y'",
            ["[[retention]] 2 has no key kep", "did you mean keep?"],
        ),
        ("[lmtp]\n[[replica]]\nurl = 'https://b'", ["[[replica]] 1 url: 'https://b' is no replica", "s3://"]),
        (
            "[lmtp]\n[[replica]]\nurl = 's3://bucket/a'\n[[replica]]\nurl = 's3://bucket/a'",
            ["[[replica]] 2 url: s3://bucket/a stands there twice"],
        ),
        (
            "[lmtp]\n[[replica]]\nurl = 's3://bucket'\nendpoint = 'http://s3.example'",
            ["[[replica]] 1 endpoint: http://s3.example would send mail in the clear"],
        ),
        (
            "[lmtp]\n[[replica]]\nurl = 'file:///mnt'\nlock_days = 3",
            ["[[replica]] 1 url: endpoint and lock_days are for s3"],
        ),
        ("[lmtp]\n" + "[[replica]]\n" * 9, ["[[replica]] 9: there may be 8"]),
        ("[lmtp]\n[[retention]]\nkeep = 7", ["[[retention]] 1 keep = 7: write how long to keep", '"7y"']),
        ("[lmtp]\n[[retention]]\nkeep = '7 years'", ["[[retention]] 1 keep: '7 years' is not how long"]),
        ("[lmtp]\n[[retention]]\nkeep = '0d'", ["[[retention]] 1 keep: '0d' is not how long"]),
        ("[lmtp]\n[[retention]]\nto = 'example.org'", ["1 to: 'example.org' is no pattern", "@example.org"]),
        ("[lmtp]\n[[retention]]\nleg = 'imap'", ["1 leg: 'imap' is none of lmtp, milter, import"]),
        ("[lmtp]\n[[retention]]\ndirection = 'up'", ["1 direction: 'up' is none of in, out"]),
        (
            "[lmtp]\n[[retention]]\nkeep = '7y'\n[[retention]]\nto = 'a@b'\nkeep = '1d'",
            ["[[retention]] 1: it is for all mail", "never count"],
        ),
        (
            "[lmtp]\n[[retention]]\nleg = 'lmtp'\ndirection = 'out'",
            ["[[retention]] 1: no mail of leg lmtp has the direction out"],
        ),
        ("[lmtp\n", ["is not TOML", "line 1"]),
        ("[lmtp]\n[lmtp]", ["is not TOML"]),
    ],
)
def test_a_slip_names_its_place_and_a_way_out(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for word in ["mk.toml: ", *words]:
        assert word in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_workers_and_their_streams() -> None:
    config = parse('[store]\nstream = "mx1"\n[lmtp]\nworkers = 4\n[milter]\nworkers = 2\n')
    assert config.workers == 4
    assert [config.store.stream_of(number) for number in (1, 2, 10)] == ["mx1", "mx1-2", "mx1-10"]
    assert parse(LEAST).workers == 1
    longest = StoreConfig(stream="x" * 63)
    assert longest.stream_of(1) == "x" * 63
    assert longest.stream_of(64) == "x" * 61 + "-64"
    for count in (0, 65):
        with pytest.raises(ConfigError, match=f"workers.*{count} is not from 1 to 64"):
            parse(f"[lmtp]\nworkers = {count}\n")
    assert reloadable_changes(parse(LEAST), parse("[lmtp]\nworkers = 2\n")) == ({}, ["lmtp.workers"])


def test_any_free_port_may_be_asked_for_twice() -> None:
    assert parse("[lmtp]\nlisten='127.0.0.1:0'\n[metrics]\nlisten='127.0.0.1:0'").metrics is not None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match="No such file") as caught:
        Config.load(missing)
    assert str(missing) in str(caught.value)
    assert "--config" in caught.value.hint
    (tmp_path / "latin1.toml").write_bytes(b"# gr\xfc\xdfe\n")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 4"):
        Config.load(tmp_path / "latin1.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path)


def test_which_file_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, named = tmp_path / "given.toml", tmp_path / "named.toml"
    given.write_text("[lmtp]\nmax_connections = 1\n")
    named.write_text("[lmtp]\nmax_connections = 2\n")
    monkeypatch.setenv("MAILKEEP_CONFIG", str(named))
    assert load_default(given).lmtp == LmtpConfig(max_connections=1)
    assert load_default().lmtp == LmtpConfig(max_connections=2)
    monkeypatch.setattr("sidecar.config.DEFAULT_PATH", tmp_path / "etc.toml")
    monkeypatch.setenv("MAILKEEP_CONFIG", "")
    with pytest.raises(ConfigError, match=r"etc\.toml"):
        load_default()


LISTS = ("retention", "replica")


def as_toml(lines: list[str]) -> str:
    plain = [line for line in lines if not line.startswith("[[")]
    lists = [re.split(r"(?<=\]\]) \d+: ", line) for line in lines if line.startswith("[[")]
    return "\n".join(
        [f"{section[1:]}.{rest}" for section, _, rest in (line.partition("] ") for line in plain)]
        + [section + "\n" + re.sub(r", (?=[a-z_]+ = )", "\n", keys) for section, keys in lists]
    )


def test_the_effective_configuration_reads_back() -> None:
    config = replace(
        Config(
            lmtp=LmtpConfig(idle_timeout_s=90.5, socket_mode=0o600),
            milter=MilterConfig(),
            metrics=MetricsConfig(),
            imap=ImapConfig(master_user="m"),
        ),
        store=StoreConfig(path=Path('/srv/a "quoted" ü'), reserve_bytes=12345),
        retention=(RetentionConfig(to="@a.example", keep_us=7 * YEAR_US), RetentionConfig(sender="<>")),
        replica=(ReplicaConfig(url="file:///mnt/nas", bandwidth_bytes=1 << 20), ReplicaConfig()),
    )
    lines = list(config.lines())
    assert '[lmtp] idle_timeout = "1m30s500ms"' in lines
    assert '[[retention]] 1: to = "@a.example", from = "", leg = "", direction = "", keep = "7y"' in lines
    assert len(lines) == len([key for key in all_keys() if key.section not in LISTS]) + 4
    assert parse(as_toml(lines)) == config
    assert "[milter] is absent" in list(parse(LEAST).lines())


def test_keys_list_their_defaults() -> None:
    keys = all_keys()
    assert ("lmtp", "delivery_timeout", '"9m"') in [key[:3] for key in keys]
    assert ("lmtp", "max_connections", "100") in [key[:3] for key in keys]
    assert len({(key.section, key.key) for key in keys}) == len(keys)
    plain = [f"{key.section}.{key.key} = {key.default}" for key in keys if key.section not in LISTS]
    for section in LISTS:
        plain += [f"[[{section}]]", *(f"{key.key} = {key.default}" for key in keys if key.section == section)]
    assert parse("\n".join(plain)) == Config(
        lmtp=LmtpConfig(),
        milter=MilterConfig(),
        metrics=MetricsConfig(),
        imap=ImapConfig(),
        retention=(RetentionConfig(),),
        replica=(ReplicaConfig(),),
    )
    for key in keys:
        assert key.help.endswith("."), key
        assert key.help.count(". ") == 0, f"one sentence: {key}"


def test_what_a_reload_takes_up_and_what_needs_a_restart() -> None:
    old = parse("[lmtp]\n[milter]")
    new = parse(
        """
        store.path = "/srv/keep"
        log.level = "debug"
        log.format = "json"
        capture.on_failure = "accept"
        lmtp.listen = "127.0.0.1:2525"
        lmtp.downstream = "127.0.0.1:2400"
        lmtp.delivery_timeout = "1m"
        metrics.listen = "127.0.0.1:9000"
        """
    )
    changes, restart = reloadable_changes(old, new)
    assert changes == {
        "lmtp.downstream": Address(host="127.0.0.1", port=2400),
        "lmtp.delivery_timeout": 60,
        "capture.on_failure": "accept",
        "log.level": "debug",
    }
    assert restart == ["store.path", "lmtp.listen", "milter", "metrics", "log.format"]
    assert reloadable_changes(new, new) == ({}, [])
    looking = parse("[lmtp]\n[milter]\n[imap]\nmaster_user = 'm'")
    assert reloadable_changes(old, looking) == ({"imap": looking.imap}, [])
    assert reloadable_changes(looking, old) == ({"imap": None}, [])
    rules = parse("[lmtp]\n[milter]\n[[retention]]\nkeep = '1y'")
    assert reloadable_changes(old, rules) == ({"retention": rules.retention}, [])
    assert reloadable_changes(rules, old) == ({"retention": ()}, [])
    replica = parse("[lmtp]\n[milter]\n[[replica]]\nurl = 's3://bucket'")
    assert reloadable_changes(old, replica) == ({}, ["replica"])
    slower = parse("[lmtp]\n[milter]\n[[replica]]\nurl = 's3://bucket'\ninterval = '1m'")
    assert reloadable_changes(replica, slower) == ({"replica": slower.replica}, [])


def test_rules_in_their_order() -> None:
    config = parse(
        """
        [lmtp]
        [[retention]]
        to = "boss@example.org"
        [[retention]]
        from = "*@*.example.net"
        leg = "milter"
        direction = "out"
        keep = "90d"
        [[retention]]
        keep = "7y"
        """
    )
    assert config.rules == (
        Rule(to="boss@example.org"),
        Rule(sender="*@*.example.net", leg="milter", direction="out", keep_us=90 * 86_400_000_000),
        Rule(keep_us=7 * YEAR_US),
    )
    assert [str(rule) for rule in config.rules] == [
        "to boss@example.org, keep forever",
        "from *@*.example.net, leg milter, direction out, keep 90d",
        "keep 7y",
    ]
    assert parse(LEAST).rules == ()
    assert parse("retention = []\n[lmtp]").rules == ()


_KINDS = (SchedulerConfig, SearchConfig, RetentionConfig, WitnessConfig, DrillConfig, ImapConfig)
_OF_JOBS = {"scheduler", "search", "retention", "witness", "drill", "imap"}


def test_timeouts_caps_policy_jobs_and_rules_are_reloadable() -> None:
    jobs = {(section, key) for section, key, *_ in all_keys() if section in _OF_JOBS}
    assert len(jobs) == sum(len(fields(kind)) for kind in _KINDS)
    assert reloadable_keys() == jobs | {
        ("store", "threads"),
        ("store", "compaction_level"),
        ("lmtp", "downstream"),
        ("lmtp", "max_connections"),
        ("lmtp", "idle_timeout"),
        ("lmtp", "delivery_timeout"),
        ("lmtp", "connect_timeout"),
        ("milter", "commit_timeout"),
        ("capture", "on_failure"),
        ("log", "level"),
        ("replica", "interval"),
        ("replica", "bandwidth"),
        ("replica", "delete"),
        ("replica", "scrub_read"),
    }
