"""An actor offers what its service does, by methods of its own class, as Ray wants them."""

from __future__ import annotations

import inspect

import pytest

from compass.cluster.forwarding import forwards_to


class Service:
    def __init__(self) -> None:
        self.closed = False

    async def double(self, number: int, *, plus: int = 0) -> int:
        """Twice the number."""
        return 2 * number + plus

    async def fail(self) -> None:
        raise ValueError("on purpose")

    async def close(self) -> None:
        self.closed = True

    async def _hidden(self) -> None:
        return None

    def blocking(self) -> None:
        return None


@forwards_to(Service)
class Process:
    def __init__(self) -> None:
        self.service = Service()
        self.closes = 0

    async def close(self) -> None:
        self.closes += 1
        await self.service.close()


async def test_a_call_goes_to_the_service() -> None:
    """With its arguments, and back with its answer or its error."""
    process = Process()
    assert await process.double(2, plus=1) == 5  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="on purpose"):
        await process.fail()  # type: ignore[attr-defined]


async def test_what_the_class_defines_is_its_own() -> None:
    """So that it can do more than the service."""
    process = Process()
    await process.close()
    assert (process.closes, process.service.closed) == (1, True)


def test_the_methods_are_coroutines_of_the_class_with_the_services_signature() -> None:
    """Ray reads them off the class; what is private or would block the loop is not offered."""
    method = vars(Process)["double"]
    assert inspect.iscoroutinefunction(method)
    assert inspect.signature(method) == inspect.signature(Service.double)
    assert method.__doc__ == "Twice the number."
    assert not {"_hidden", "blocking"} & vars(Process).keys()
