"""Calling a named actor as if it were here: awaits its methods, over restarts of its process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from compass.errors import CompassError, UnavailableError

log = logging.getLogger(__name__)

NAMESPACE = "compass"
RETRY_S = 10.0  # Ray restarts a killed process in about a second
PAUSE_S = 0.1


class Remote:
    """An actor's methods as coroutines. A call that a crash interrupted is sent again.

    Most methods of ours may be sent twice: a write names its attempt and is answered with its receipt then, a read
    changes nothing. Those named in `once` are not; an interrupted one is an UnavailableError, and may have happened.

    Raises (from each call):
        CompassError: what the method raised, or the constructor.
        UnavailableError: the actor did not come back in time.
    """

    def __init__(
        self,
        find: Callable[[], ActorHandle[Any]],
        *,
        once: frozenset[str] = frozenset(),
        retry_s: float = RETRY_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        """Call the actor that `find` gets.

        Args:
            find: Gets the handle, and starts the actor where that is the caller's right.
            once: Methods that are never sent a second time.
            retry_s: How long an interrupted call is sent again.
            pause_s: From one try to the next.
        """
        self._find, self._once = find, once
        self._retry_s, self._pause_s = retry_s, pause_s
        self._handle: ActorHandle[Any] | None = None

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*args: Any) -> Any:
            return await self._call(method, args)

        return call

    async def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        deadline = time.monotonic() + self._retry_s
        while True:
            try:
                if self._handle is None:
                    self._handle = await asyncio.to_thread(self._find)
                return await getattr(self._handle, method).remote(*args)
            except RayTaskError as error:
                raise _cause(error) from None
            except (AttributeError, TypeError) as error:  # no such method, or one that takes other arguments:
                # an actor outlives a rollout, with the code that it was started with
                raise UnavailableError(f"a part of the service is of another version and cannot {method}") from error
            except (RayError, ValueError) as error:
                self._handle = None
                if (refusal := _constructor_error(error)) is not None:
                    raise refusal from None
                if method in self._once or time.monotonic() > deadline:
                    log.warning("%s: %s", method, error)
                    raise UnavailableError(
                        f"a part of the service does not answer ({method}); try again", {"retry_after": 1}
                    ) from error
                await asyncio.sleep(self._pause_s)


def _constructor_error(error: BaseException) -> CompassError | None:
    """What the actor's constructor raised on purpose, if that is why it is not there.

    Ray starts such an actor no second time, so waiting would not help; whoever may start it can try again.
    """
    if not (isinstance(error, ActorDiedError) and error.actor_init_failed and error.args):
        return None
    cause = getattr(error.args[0], "cause", None)  # Ray 2.60 keeps the creation task's error as the only argument
    return cause if isinstance(cause, CompassError) else None


def _cause(error: RayTaskError) -> BaseException:
    """What the method raised, without Ray's wrapping."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, CompassError) else error
