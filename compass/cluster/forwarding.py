"""An actor's class has the methods of the service that it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Protocol, TypeVar


class Holder(Protocol):
    """Whoever holds a service under the name `service`."""

    service: Any


T = TypeVar("T", bound=Holder)


def forwards_to(service_class: type) -> Callable[[type[T]], type[T]]:
    """Give a class every public coroutine method of `service_class`; each calls the object's `service`.

    Ray offers of an actor what is a method of its class. The service itself stays a plain object that `wiring` opens,
    the same in an actor and in a test. A method that the class defines is its own.
    """

    def decorate(process_class: type[T]) -> type[T]:
        for name, method in inspect.getmembers(service_class, inspect.iscoroutinefunction):
            if not name.startswith("_") and name not in vars(process_class):
                setattr(process_class, name, _forwarding(name, method))
        return process_class

    return decorate


def _forwarding(name: str, method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @wraps(method)
    async def forward(self: Holder, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self.service, name)(*args, **kwargs)

    return forward
