# ruff: noqa: RUF009 - a section is frozen, so that all may share the one that is the default
"""The configuration: one frozen tree of dataclasses with its defaults, read from one TOML file.

A slip (unknown key, wrong unit, values that cannot work together) is a `ConfigError` that names the file,
section and key. Reads the file and nothing else: no socket is opened, no path is made.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.config_faults import faults
from sidecar.keys import Kind, kind_of, name_of
from sidecar.sections import (
    CaptureConfig,
    DrillConfig,
    EncryptionConfig,
    ImapConfig,
    LmtpConfig,
    LogConfig,
    MetricsConfig,
    MilterConfig,
    ReplicaConfig,
    RetentionConfig,
    SchedulerConfig,
    SearchConfig,
    Section,
    StoreConfig,
    WitnessConfig,
)
from store.retention import Rule

DEFAULT_PATH = Path("/etc/mailkeep/mailkeep.toml")


class ConfigError(Exception):
    """The configuration cannot be used; the text says where and why, `hint` says what to do."""

    exit_code = 2

    def __init__(
        self, message: str, hint: str = "deploy/mailkeep.toml shows every key with its default."
    ) -> None:
        super().__init__(message)
        self.hint = hint


_SECTIONS: dict[str, type[Section]] = {
    "store": StoreConfig,
    "lmtp": LmtpConfig,
    "milter": MilterConfig,
    "metrics": MetricsConfig,
    "capture": CaptureConfig,
    "encryption": EncryptionConfig,
    "scheduler": SchedulerConfig,
    "search": SearchConfig,
    "witness": WitnessConfig,
    "drill": DrillConfig,
    "imap": ImapConfig,
    "log": LogConfig,
}
_LISTS: dict[str, type[Section]] = {"retention": RetentionConfig, "replica": ReplicaConfig}
"""sections of which there may be several, in an order that counts: `[[retention]]`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. A front or endpoint whose section is absent is None and is not run."""

    store: StoreConfig = StoreConfig()
    lmtp: LmtpConfig | None = None
    milter: MilterConfig | None = None
    metrics: MetricsConfig | None = None
    capture: CaptureConfig = CaptureConfig()
    encryption: EncryptionConfig = EncryptionConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    search: SearchConfig = SearchConfig()
    witness: WitnessConfig = WitnessConfig()
    drill: DrillConfig = DrillConfig()
    imap: ImapConfig | None = None
    retention: tuple[RetentionConfig, ...] = ()
    replica: tuple[ReplicaConfig, ...] = ()
    log: LogConfig = LogConfig()

    @property
    def workers(self) -> int:
        """How many processes take mail."""
        return max(section.workers for section in (self.lmtp, self.milter) if section is not None)

    @property
    def spool_path(self) -> Path:
        """Where mail waits that went through without a copy."""
        return self.capture.spool or self.store.path / "spool"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """How long mail is kept; without any rule for ever."""
        return tuple(section.rule for section in self.retention)

    @classmethod
    def load(cls, path: Path) -> Config:
        """The configuration in a file. Raises ConfigError."""
        try:
            text = path.read_text("utf-8")
        except OSError as exc:
            raise ConfigError(
                f"{path}: cannot be read: {exc.strerror}", "Name the file by --config or MAILKEEP_CONFIG."
            ) from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{path}: is not UTF-8 at byte {exc.start}", "Save the file as UTF-8.") from exc
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> Config:
        """The configuration in `text`; `source` names it in errors. Raises ConfigError."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"{source}: is not TOML: {exc}") from exc
        sections: dict[str, Any] = {}
        for name, values in document.items():
            if name in _LISTS:
                sections[name] = _read_list(name, values, source)
                continue
            if name not in _SECTIONS:
                raise ConfigError(f"{source}: there is no {_as_written(name, values)}{_nearest(name)}")
            if not isinstance(values, dict):
                raise ConfigError(f"{source}: {name} is a section: write [{name}] and its keys below it")
            sections[name] = _read_section(name, f"[{name}]", values, source)
        config = cls(**sections)
        fault = next(faults(config), None)
        if fault is not None:
            raise ConfigError(f"{source}: {fault}")
        return config

    def lines(self) -> Iterator[str]:
        """The effective configuration, a line for each key, for the log at start-up."""
        for name in _SECTIONS:
            section = getattr(self, name)
            if section is None:
                yield f"[{name}] is absent"
            else:
                yield from (f"[{name}] {line}" for line in _lines(section))
        for name in _LISTS:
            for number, section in enumerate(getattr(self, name), 1):
                yield f"[[{name}]] {number}: " + ", ".join(_lines(section))


def _lines(section: Section) -> Iterator[str]:
    """Each key of a section with its value."""
    for field in fields(section):
        yield f"{name_of(field)} = {_as_toml(kind_of(field).show(getattr(section, field.name)))}"


def load_default(path: Path | None = None) -> Config:
    """The configuration in `path`, else in the file that MAILKEEP_CONFIG names, else in DEFAULT_PATH."""
    return Config.load(path or Path(os.environ.get("MAILKEEP_CONFIG") or DEFAULT_PATH))


class Key(NamedTuple):
    """One key as a person meets it; `default` is written as in the file."""

    section: str
    key: str
    default: str
    help: str


def all_keys() -> list[Key]:
    """Every key there is, in the order of the file; those of sections that may be repeated come last."""
    return [
        Key(name, name_of(field), _as_toml(field.metadata["text"]), field.metadata["help"])
        for name, section in (_SECTIONS | _LISTS).items()
        for field in fields(section)
    ]


def reloadable_keys() -> set[tuple[str, str]]:
    """The keys, as (section, key), that SIGHUP takes up without a restart."""
    return {
        (name, name_of(field))
        for name, section in (_SECTIONS | _LISTS).items()
        for field in fields(section)
        if field.metadata["reload"]
    }


def reloadable_changes(old: Config, new: Config) -> tuple[dict[str, Any], list[str]]:
    """What differs: new values by `section.key` that may be taken up now, and the names that need a restart.

    A section that comes or goes needs a restart and is named alone; a list of sections changes as a whole.
    """
    changes: dict[str, Any] = {}
    restart: list[str] = []
    for name, section in _SECTIONS.items():
        before, after = getattr(old, name), getattr(new, name)
        if before is None or after is None:
            if before != after and all(field.metadata["reload"] for field in fields(section)):
                changes[name] = after  # nobody holds it: whoever needs it looks when it does
            elif before != after:
                restart.append(name)
            continue
        for field in fields(section):
            value = getattr(after, field.name)
            if value == getattr(before, field.name):
                continue
            if field.metadata["reload"]:
                changes[f"{name}.{name_of(field)}"] = value
            else:
                restart.append(f"{name}.{name_of(field)}")
    for name in _LISTS:
        before, after = getattr(old, name), getattr(new, name)
        if before != after and _fixed(name, before) == _fixed(name, after):
            changes[name] = after
        elif before != after:
            restart.append(name)
    return changes, restart


def _fixed(name: str, sections: tuple[Section, ...]) -> list[list[Any]]:
    """What of a list needs a restart to change."""
    fixed = [field.name for field in fields(_LISTS[name]) if not field.metadata["reload"]]
    return [[getattr(section, name) for name in fixed] for section in sections] if fixed else []


def _read_list(name: str, tables: object, source: str) -> tuple[Section, ...]:
    if not isinstance(tables, list) or not all(isinstance(values, dict) for values in tables):
        raise ConfigError(
            f"{source}: {name} may be there several times: write [[{name}]] and its keys below it, for each"
        )
    return tuple(
        _read_section(name, f"[[{name}]] {number}", values, source) for number, values in enumerate(tables, 1)
    )


def _read_section(name: str, where: str, values: Mapping[str, Any], source: str) -> Section:
    """`where` names the section in errors."""
    made = (_SECTIONS | _LISTS)[name]
    known = {name_of(field): field for field in fields(made)}
    read: dict[str, Any] = {}
    for written, value in values.items():
        if written not in known:
            raise ConfigError(f"{source}: {where} has no key {written}{_nearest_key(name, written)}")
        kind: Kind = kind_of(known[written])
        if type(value) is not kind.toml_type:  # isinstance would take true for a number
            raise ConfigError(
                f"{source}: {where} {written} = {_as_toml(value)}: write {kind.name}, such as {kind.example}"
            )
        try:
            read[known[written].name] = kind.read(value)
        except ValueError as exc:
            raise ConfigError(f"{source}: {where} {written}: {exc}") from exc
    return made(**read)


def _nearest(name: str) -> str:
    """A suggestion for a section that does not exist, or for a key that stands outside its section."""
    near = difflib.get_close_matches(name, [*_SECTIONS, *_LISTS], 1)
    return f"; did you mean {_written(near[0])}?" if near else _nearest_key("", name)


def _nearest_key(section: str, name: str) -> str:
    """A suggestion for a key that does not exist: of the same section first, then of the others."""
    own = [k.key for k in all_keys() if k.section == section]
    near = difflib.get_close_matches(name, own, 1)
    if near:
        return f"; did you mean {near[0]}?"
    others = {k.key: k.section for k in reversed(all_keys())}
    near = difflib.get_close_matches(name, others, 1)
    return f"; did you mean {near[0]} in {_written(others[near[0]])}?" if near else ""


def _written(section: str) -> str:
    return f"[[{section}]]" if section in _LISTS else f"[{section}]"


def _as_written(name: str, value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"section [[{name}]]"
    return f"section [{name}]" if isinstance(value, dict) else f"key {name} outside the sections"


def _as_toml(value: object) -> str:
    """A value as the file has it, near enough to be found."""
    return json.dumps(value, default=str, ensure_ascii=False)
