"""One drill from the canary to the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.config import Config, ConfigError
from sidecar.drill.canary import Canary, CanaryError, Route, fly
from sidecar.drill.restore import Restore, Restored, restore
from sidecar.drill.sample import draw
from sidecar.drill.sink import ScratchError
from sidecar.readable import escaped, text
from sidecar.units import format_size, format_time
from store.errors import StoreError
from store.records import Leg
from store.store import Store


class DrillFailedError(Exception):
    """The drill has not proven that restoring works."""

    exit_code = 6
    hint = (
        "Run `mailkeep drill` to see it again, and `mailkeep check --read-data` to find the extent of damage."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do: the canary's way (None: no canary), and how many deliveries to draw."""

    route: Route | None
    sample: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        canary: bool | None = None,
        sample: int | None = None,
        timeout_s: float | None = None,
    ) -> Plan:
        """As configured; `canary` None: if there is a recipient for it. Raises `ConfigError` when the canary
        is asked for and has no way to go, or when nothing would be done."""
        settings = config.drill
        number = settings.sample if sample is None else sample
        notes = []
        if canary is None and not settings.recipient:
            canary = False
            notes.append("no canary was sent: [drill] recipient is not set")
        route = _route(config, timeout_s) if canary is not False else None
        if route is None and not number:
            raise ConfigError(
                "neither a canary nor a sample: there is nothing that a drill could prove",
                "Set [drill] recipient, or a [drill] sample above 0.",
            )
        if route is not None and route.leg != Leg.LMTP:
            notes.append("without [lmtp] the mailbox server's reply to the canary is not seen")
        return cls(route=route, sample=number, notes=tuple(notes))


def _route(config: Config, timeout_s: float | None) -> Route:
    settings, lmtp = config.drill, config.lmtp
    if not settings.recipient:
        raise ConfigError(
            "[drill] recipient is not set, so there is nobody to send the canary to",
            "Set it to a mailbox that is set aside for drills, or go without by --no-canary.",
        )
    address = settings.via or (lmtp.listen if lmtp else None)
    if address is None or not (address.is_unix or address.port):
        raise ConfigError(
            "[drill] via is not set, and [lmtp] listen is no address to send the canary to",
            "Set [drill] via to Postfix's SMTP address, such as 127.0.0.1:25, or go without by --no-canary.",
        )
    return Route(
        address=address, smtp=settings.via is not None, sender=settings.sender.encode(),
        recipient=settings.recipient.encode(), timeout_s=timeout_s or settings.timeout_s,
        leg=Leg.LMTP if lmtp else Leg.MILTER,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done, and why it proves nothing, if it does not (`reasons`). `notes`: what it did not see."""

    plan: Plan
    canary: Canary | None
    restored: Restore
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether everything came back, and there was something."""
        return not self.reasons

    @property
    def rate(self) -> float:
        """Messages restored in a second."""
        return self.restored.proven / max(self.restored.seconds, 1e-6)

    def lines(self) -> list[str]:
        """What a person wants to know; the verdict comes last."""
        told = []
        route, restored = self.plan.route, self.restored
        if self.canary and route:
            said = f", the mailbox server said {text(self.canary.reply)}" if self.canary.reply else ""
            told.append(
                f"canary to {text(route.recipient)} by {route}: captured as {self.canary.id.hex()[:10]} "
                f"in {self.canary.seconds:.2f} s{said}"
            )
        if restored.first_s is not None:
            told.append(
                f"restored {restored.proven} message{'' if restored.proven == 1 else 's'}, "
                f"{format_size(restored.size)}: "
                f"the first in {restored.first_s:.3f} s, {self.rate:.0f}/s"
            )
        told += [f"note: {note}" for note in self.notes]
        told += [f"not proven: {reason}" for reason in self.reasons]
        if self.proven:
            told.append("proven: every byte came back")
        return [escaped(line) for line in told]


async def drill(
    store: Store,
    plan: Plan,
    *,
    step: Callable[[int], None] = lambda _size: None,
    told: Callable[[Restored], None] = lambda _restored: None,
    drawn: Callable[[int], None] = lambda _number: None,
) -> Report:
    """Do it. `step` is called between two messages with the bytes that were read, and may stop it all by an
    exception; `drawn` is told how many are put back, `told` of each. Raises `SealedError` when nothing here
    can be read: then nothing can be proven, and nothing is sent."""
    store.require_identity()
    began = time.monotonic()
    reasons: list[str] = []
    canary = None
    if plan.route is not None:
        try:
            canary = await fly(store, plan.route, step=lambda: step(0))
        except (CanaryError, StoreError) as exc:
            reasons.append(str(exc))
    own = [canary.id] if canary else []
    ids = own + draw(store, plan.sample, but=frozenset(own))
    drawn(len(ids))

    def one(result: Restored) -> None:
        told(result)
        step(result.delivery.size if result.delivery else 0)

    restored = Restore([])
    try:
        restored = await restore(store, ids, one)
    except ScratchError as exc:
        reasons.append(str(exc))
    reasons += [_why(result) for result in restored.results if result.error]
    if not restored.results and not reasons:
        reasons.append("the store has no mail, so nothing was restored")
    elif not restored.proven and not reasons:
        reasons.append("all that was drawn has been erased or has expired meanwhile")
    return Report(
        plan=plan, canary=canary, restored=restored, reasons=tuple(reasons),
        notes=(*plan.notes, *_unseen(store)), seconds=time.monotonic() - began,
    )  # fmt: skip


def _why(result: Restored) -> str:
    what = f"delivery {result.id.hex()[:10]}"
    if result.delivery is not None:
        to = result.delivery.envelope.recipients
        what += f" ({format_time(result.delivery.time_us)}{f', to {text(to[0].address)}' if to else ''})"
    return f"{what}: {result.error}"


def _unseen(store: Store) -> list[str]:
    notes = [f"what is sealed for other keys in {stream} was not drawn" for stream in store.hidden]
    if store.damage:
        notes.append(f"the store is damaged in {len(store.damage)} places, as `mailkeep check` tells")
    return notes
