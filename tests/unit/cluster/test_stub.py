"""Calling an actor: a crash is waited out, what was raised on purpose arrives at once and as it was."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from compass.cluster.stub import Remote
from compass.errors import NotFoundError, TakenOverError, UnavailableError


class Handle:
    """An actor's handle whose method `ask` answers what is next in a list, or raises it."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls = list(answers), 0

    @property
    def ask(self) -> Any:
        handle = self

        class Method:
            async def remote(self, *args: Any) -> Any:
                handle.calls += 1
                answer = handle.answers.pop(0)
                if isinstance(answer, BaseException):
                    raise answer
                return answer

        return Method()


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("f", "Traceback", cause, proctitle="p", pid=1, ip="127.0.0.1")  # type: ignore[no-untyped-call]


def remote(handle: Handle, **options: Any) -> Remote:
    return Remote(lambda: handle, pause_s=0.01, **options)  # type: ignore[arg-type, return-value]


async def test_what_a_method_raised_arrives_as_it_was() -> None:
    """Ray's wrapping is taken off: type, detail and fields are the method's own."""
    handle = Handle(task_error(NotFoundError("gone", {"space": "s"})).as_instanceof_cause())  # type: ignore[no-untyped-call]
    with pytest.raises(NotFoundError) as raised:
        await remote(handle).ask(1)
    assert type(raised.value) is NotFoundError
    assert raised.value.fields == {"space": "s"}
    assert handle.calls == 1


async def test_a_call_that_a_crash_cut_short_is_sent_again() -> None:
    """A restarted process answers, and the caller has noticed nothing."""
    handle = Handle(ActorUnavailableError("restarting", b"a" * 16), ActorDiedError(), 7)
    assert await remote(handle).ask() == 7


async def test_what_must_not_be_sent_twice_is_not() -> None:
    """A method named in `once` is an error of its caller's to settle."""
    handle = Handle(ActorDiedError(), 7)
    with pytest.raises(UnavailableError):
        await remote(handle, once=frozenset({"ask"})).ask()
    assert handle.calls == 1


async def test_what_a_constructor_raised_arrives_at_once() -> None:
    """An actor that refuses to start says why, instead of being waited for; the next call looks again."""
    handle = Handle(ActorDiedError(task_error(TakenOverError("another one writes", {"pid": 3}))), 7)
    caller = remote(handle)
    with pytest.raises(TakenOverError) as raised:
        await caller.ask()
    assert handle.calls == 1
    assert type(raised.value) is TakenOverError
    assert raised.value.fields == {"pid": 3}
    assert await caller.ask() == 7


@pytest.mark.parametrize("refusal", [AttributeError("ask"), TypeError("too many positional arguments")])
async def test_a_part_of_another_version_is_not_waited_for(refusal: Exception) -> None:
    """An actor outlives a rollout with its old code: what that lacks is a 503 that says so, at once."""
    handle = Handle(refusal, 7)
    with pytest.raises(UnavailableError, match="of another version and cannot ask"):
        await remote(handle).ask(1, "new")
    assert handle.calls == 1


async def test_waiting_has_an_end() -> None:
    """An actor that is nowhere is a 503 in the end."""

    def nowhere() -> Any:
        raise ValueError("no such actor")

    with pytest.raises(UnavailableError):
        await Remote(nowhere, retry_s=0.05, pause_s=0.01).ask()
