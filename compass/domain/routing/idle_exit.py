"""When a router ends, and what ends with it: state in, decision out.

A service without gateways serves nobody, so after a while its router ends it. But silence may have another reason:
the gateways ask a newer router that has taken over. Then the actors, found by their names, are the newer one's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto


class Decision(Enum):
    """What the router does next."""

    GO_ON = auto()  # count another second
    LOOK_FOR_SUCCESSOR = auto()  # read the claims of routers, and ask `on_look`
    END_ROUTER = auto()  # end this process alone: the actors are the successor's
    END_SERVICE = auto()  # close every actor, then the router itself


@dataclass(frozen=True, slots=True)
class IdleExit:
    """How long no gateway has asked, counted in seconds in which this process was awake.

    A clock would also count a suspension of the machine, after which the gateways must have a chance to ask.

    Attributes:
        idle_exit_s: How long the gateways must be silent.
        router_epoch: The router's own number.
        last_renewal: When the last poll arrived, on whatever clock; only a change of it counts.
        silent_s: Awake seconds since it changed.
    """

    idle_exit_s: float
    router_epoch: int
    last_renewal: float
    silent_s: float = 0.0

    def on_awake(self, awake_s: float, last_renewal: float, superseded: bool) -> tuple[IdleExit, Decision]:
        """The process has been awake for `awake_s` more; has another poll arrived, has a newer router taken over?"""
        silent_s = self.silent_s + awake_s if last_renewal == self.last_renewal else 0.0
        later = replace(self, last_renewal=last_renewal, silent_s=silent_s)
        if superseded:
            return later, Decision.END_ROUTER
        return later, Decision.LOOK_FOR_SUCCESSOR if silent_s >= self.idle_exit_s else Decision.GO_ON

    def on_look(self, latest: int | None) -> Decision:
        """The greatest number that any router has claimed is `latest`; None: nobody can tell, so it may be greater.

        Then the actors are left alone: whoever ends a successor's service does more harm than a service that stays.
        """
        if latest is None or latest > self.router_epoch:
            return Decision.END_ROUTER
        return Decision.END_SERVICE


def may_release(first: bool, served_s: float, lease_s: float) -> bool:
    """Whether a router that ends after all its gateways may say that its successor has no lease to wait for.

    Args:
        first: Whether no gateway could hold a lease of a predecessor's when this router began.
        served_s: How long it has been there: after a whole lease those of a predecessor have run out.
        lease_s: How long a lease lasts.
    """
    return first or served_s > lease_s
