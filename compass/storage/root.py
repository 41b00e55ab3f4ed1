"""A root: all collections of a service, and the pointers from their names."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
import uuid as uuids
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from compass.domain.collection import CollectionState
from compass.domain.history import Event, Note
from compass.domain.space import Space
from compass.errors import CollectionExistsError, NotFoundError, TakenOverError, UnavailableError
from compass.storage.locks import FileLock
from compass.storage.log.log import Log, Record, new_nonce
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects, Objects, answering, create_mine
from compass.storage.spaces.vectors import SpaceVectors
from compass.storage.view.view import View

_log = logging.getLogger(__name__)

_UUID = re.compile(r"[0-9a-f]{32}")
_LOCK = "compass.lock"


class Root:
    """Creates, finds and deletes collections. One process at a time may change a root: see `lock`."""

    def __init__(self, objects: Objects, cache: Path) -> None:
        self.objects, self.cache = objects, Path(cache)
        self._changing = threading.Lock()

    def lock(self, service: str | None = None) -> FileLock:
        """Hold the root until the lock is closed or the process ends. Only a local root can be held.

        It keeps out other services. A process of the same `service` that has it is a predecessor on a node that is
        taken for dead: its claim is superseded, it can do no harm, and nobody knows when it ends. Then the lock is
        returned without being held; `hold` it as soon as it is free.

        Raises:
            TakenOverError: a process of another service holds it; the message says which.
        """
        folder = self.objects.root if isinstance(self.objects, LocalObjects) else self.cache
        lock = FileLock(folder / _LOCK)
        if not hold(lock, service):
            holder = lock.holder()
            if service is None or holder.get("service") != service:
                raise TakenOverError(
                    f"process {holder.get('pid')} on {holder.get('host')} serves {folder} already", holder
                )
        return lock

    def collections(self) -> dict[str, str]:
        """The uuid of each collection, by name."""
        with answering("listing the collections"):
            uuids_by_name = {name: self._uuid(name) for name in self._names()}
            return {
                name: uuid for name, uuid in uuids_by_name.items() if uuid is not None and not self._dropped(uuid)
            }

    def create(
        self,
        name: str,
        spaces: Sequence[Space],
        default: str,
        config: Mapping[str, Any] | None = None,
        note: Note | None = None,
    ) -> CollectionState:
        """Create a collection with these spaces; `default` is a space id. Durable when it returns.

        The note begins its history.

        Its first commit is written before its name, so a name always leads to a collection.

        Raises:
            CollectionExistsError: the name is taken.
            UnavailableError: it may be there nevertheless, whole; `collections` tells.
        """
        with self._changing, answering(f"creating collection {name!r}"):
            self._finish_delete(name)
            if self._uuid(name) is not None and self.objects.ensure_durable(_name_key(name)):
                raise _exists(name)
            uuid = uuids.uuid4().hex
            by_id = {space.id: space for space in spaces}
            state = CollectionState(uuid, name, time.time(), by_id, default, config=dict(config or {}))
            state.by_id(default)
            event = Event.of(note, seq=1, at=state.created_at, epoch=state.epoch) if note is not None else None
            record = Record(
                prev="",
                nonce=new_nonce(),
                next=1,
                state=state.to_json(),
                events=[event.to_json()] if event is not None else [],
            )
            Log(self.objects, uuid).create(1, record)
            pointer = json.dumps({"uuid": uuid}).encode()
            if not create_mine(self.objects, _name_key(name), pointer, lambda found: _pointed_at(found) == uuid):
                self.objects.delete_prefix(uuid)
                raise _exists(name)
            return state

    def delete(self, name: str) -> None:
        """Delete a collection; its bytes are gone when this returns.

        The tombstone comes first: from then on a crash, or a late write, is seen to by `sweep`.

        Raises:
            NotFoundError: there is none of this name.
            UnavailableError: it is deleted in part, or not at all; `sweep` finishes it, if it has begun.
        """
        with self._changing, answering(f"deleting collection {name!r}"):
            self._finish_delete(name)
            uuid = self._uuid(name)
            if uuid is None:
                raise NotFoundError(f"there is no collection {name!r}", {"collection": name})
            self.objects.write(_tombstone_key(uuid), json.dumps({"name": name, "at": time.time()}).encode())
            self._finish_delete(name)

    def open(self, uuid: str, **options: Any) -> CollectionStore:
        """Open a collection for writing, which takes it over. Options and errors: `CollectionStore`.

        Its name is made durable: what created it may have failed after the name was seen, and a collection that
        lost its name would take with it all that was acknowledged.
        """
        store = CollectionStore(self.objects, uuid, self.cache, **options)
        try:
            with answering(f"opening {uuid}"):
                self.objects.ensure_durable(_name_key(store.state.name))
        except BaseException:
            store.close()
            raise
        return store

    def view(self, uuid: str) -> View:
        """This node's view of a collection."""
        return View(self.objects, uuid, self.cache)

    def space_vectors(self, uuid: str, space_id: str, dims: int) -> SpaceVectors:
        """The vectors of a space."""
        return SpaceVectors(self.objects, uuid, space_id, dims)

    def sweep(self) -> None:
        """Finish interrupted deletes, and delete what late writers left of deleted collections.

        A folder that no name and no tombstone knows is reported, never deleted.
        """
        with self._changing, answering("sweeping the root"):
            for name in self._names():
                self._finish_delete(name)
            for key in self.objects.list("tombstones"):
                self._erase(_stem(key))
            known = {self._uuid(name) for name in self._names()}
            for folder in self.objects.folders(""):
                if _UUID.fullmatch(folder) and folder not in known:
                    _log.warning("the folder %s belongs to no collection; it is left alone", folder)

    def _names(self) -> list[str]:
        return [_stem(key) for key in self.objects.list("names")]

    def _uuid(self, name: str) -> str | None:
        pointer = self.objects.read(_name_key(name))
        return None if pointer is None else _pointed_at(pointer)

    def _dropped(self, uuid: str) -> bool:
        return self.objects.read(_tombstone_key(uuid)) is not None

    def _finish_delete(self, name: str) -> None:
        """Remove a name that leads to a tombstone, and what is behind it."""
        uuid = self._uuid(name)
        if uuid is not None and self._dropped(uuid):
            self._erase(uuid, [_name_key(name)])

    def _erase(self, uuid: str, names: Sequence[str] = ()) -> None:
        """Delete names and bytes of a collection, once its tombstone lasts: without it half of it would be left."""
        self.objects.ensure_durable(_tombstone_key(uuid))
        self.objects.delete(names)
        try:
            self.objects.delete_prefix(uuid)
        except OSError as error:
            raise UnavailableError(f"collection {uuid} is not deleted entirely: {error}") from error
        shutil.rmtree(self.cache / uuid, ignore_errors=True)


def hold(lock: FileLock, service: str | None) -> bool:
    """Take and sign the lock of a root, if it is free; whether it is held now."""
    if not lock.held and lock.acquire():
        lock.sign(**({} if service is None else {"service": service}))
    return lock.held


def _exists(name: str) -> CollectionExistsError:
    return CollectionExistsError(f"there is a collection {name!r} already", {"collection": name})


def _pointed_at(pointer: pa.Buffer) -> str:
    return str(json.loads(pointer.to_pybytes())["uuid"])


def _stem(key: str) -> str:
    return key.rsplit("/", 1)[1].removesuffix(".json")


def _name_key(name: str) -> str:
    return f"names/{name}.json"


def _tombstone_key(uuid: str) -> str:
    return f"tombstones/{uuid}.json"
