"""From the configuration to what the rooms take: each knows its own settings, and nothing of the file."""

from __future__ import annotations

from sidecar.config import Config
from sidecar.front import FrontLimits
from sidecar.scheduler.kinds import Settings
from sidecar.sections import LmtpConfig


def front_limits(lmtp: LmtpConfig) -> FrontLimits:
    """The bounds of the LMTP front."""
    return FrontLimits(
        max_connections=lmtp.max_connections,
        idle_timeout_s=lmtp.idle_timeout_s,
        delivery_timeout_s=lmtp.delivery_timeout_s,
        connect_timeout_s=lmtp.connect_timeout_s,
    )


def job_settings(config: Config) -> Settings:
    """When background jobs run, and how."""
    scheduler = config.scheduler
    return Settings(
        threads=config.store.threads,
        nice=scheduler.nice,
        io_class=scheduler.io_class,
        io_rate_bytes=scheduler.io_rate_bytes,
        window=scheduler.window,
        busy_latency_s=scheduler.busy_latency_s,
        schedules={
            "compact": scheduler.compact,
            "expire": scheduler.expire,
            "check": scheduler.check,
            "scrub": scheduler.scrub,
            "drill": scheduler.drill,
            "search": scheduler.search,
            "witness": config.witness.every,
            "audit": scheduler.audit,
        },
    )
