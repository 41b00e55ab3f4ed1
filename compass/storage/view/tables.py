"""The tables of the view, and how a commit changes them.

No column but `rid` has a type: SQLite would turn "3" into 3 to compare them, and a filter must not.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from compass.domain.chunk import IntVector
from compass.storage.log.receipts import KEPT_BYTES, Receipt
from compass.storage.snapshot.rows import COLUMNS, SCHEMA, Row, is_blank, postings_of

_VERSION = 3  # to be raised with each change of the tables: a view of another version is built anew
_TABLES = """
create table tip(seq, nonce, next, count, state, takeovers, horizon);
create table rows(rid integer primary key, vid, id, file_id, chunk_index, text, doc_type, page, parent_id,
    parent_ref, group_id, metadata, seq, blank);
create table postings(field, value, vid, primary key(field, value, vid)) without rowid;
create table deaths(seq, rid, vid);
create table commits(seq integer primary key, next, nonce);
create table history(seq, event);
create table receipts(until integer primary key, seq, attempt, receipt);
"""
_INDEXES = """
create unique index rows_id on rows(id);
create unique index rows_vid on rows(vid);
create unique index rows_key on rows(file_id, chunk_index);
create index rows_blank on rows(vid) where blank;
create index deaths_seq on deaths(seq);
create index receipts_attempt on receipts(attempt);
"""
_NAMES = ("tip", "rows", "postings", "deaths", "commits", "history", "receipts")
_ROW = COLUMNS.removesuffix(", seq")
_INSERT = f"insert into rows({COLUMNS}, blank) values({', '.join('?' * (len(SCHEMA) + 1))})"


@dataclass(frozen=True, slots=True)
class Tip:
    """Where a view stands.

    Attributes:
        nonce: That of the last record applied.
        next: The counter after it.
        count: Live chunks.
        state: `CollectionState.to_json()`, as JSON text.
        takeovers: The commits that opened the collection for writing.
        horizon: Deaths and births after this commit are known one by one.
    """

    seq: int = 0
    nonce: str = ""
    next: int = 1
    count: int = 0
    state: str = ""
    takeovers: tuple[int, ...] = ()
    horizon: int = 0


def connect(path: Path, create: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, usable from any one thread at a time.

    A power cut may cost the view its last commits, a kill none: the log has them.

    Raises:
        sqlite3.OperationalError: the file is not there and not to be created.
    """
    mode = "rwc" if create else "rw"
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    for pragma in ("journal_mode=wal", "synchronous=normal", "cache_size=-32768", "mmap_size=4294967296"):
        db.execute(f"pragma {pragma}")
    return db


def read_tip(db: sqlite3.Connection) -> Tip | None:
    """Where the view stands; None if it was never built."""
    try:
        found = db.execute("select seq, nonce, next, count, state, takeovers, horizon from tip").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    if found is None:
        return None
    seq, nonce, counter, count, state, takeovers, horizon = found
    return Tip(seq, nonce, counter, count, state, tuple(json.loads(takeovers)), horizon)


def is_current(db: sqlite3.Connection) -> bool:
    """Whether the tables are those of this version."""
    return bool(db.execute("pragma user_version").fetchone()[0] == _VERSION)


def write_tip(db: sqlite3.Connection, tip: Tip) -> None:
    """Move the view to a tip, and note the counter and the nonce of that commit."""
    values = (tip.seq, tip.nonce, tip.next, tip.count, tip.state, json.dumps(tip.takeovers), tip.horizon)
    db.execute("update tip set seq=?, nonce=?, next=?, count=?, state=?, takeovers=?, horizon=?", values)
    db.execute("insert or replace into commits values(?, ?, ?)", (tip.seq, tip.next, tip.nonce))


def remember(db: sqlite3.Connection, events: Iterable[Mapping[str, Any]]) -> None:
    """Add events to the history."""
    db.executemany("insert into history values(?, ?)", ((event["seq"], json.dumps(event)) for event in events))


def recall(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """The history, oldest first."""
    return [json.loads(event) for (event,) in db.execute("select event from history order by seq, rowid")]


def keep_receipts(db: sqlite3.Connection, receipts: Iterable[tuple[int, Receipt]]) -> None:
    """Keep receipts, each with its commit, and forget those that `KEPT_BYTES` of newer ones follow.

    A receipt's number is the sum of the bytes of all up to it. Which are kept depends on the newest alone, so a
    view keeps the same ones whether it has seen every commit or began from a base.
    """
    (until,) = db.execute("select coalesce(max(until), 0) from receipts").fetchone()
    for seq, receipt in receipts:
        until += receipt.bytes
        packed = _receipt_encoder.encode(receipt)
        db.execute("insert into receipts values(?, ?, ?, ?)", (until, seq, receipt.attempt, packed))
    db.execute("delete from receipts where until<=?", (until - KEPT_BYTES,))


def receipt(db: sqlite3.Connection, attempt: str) -> tuple[int, Receipt] | None:
    """The commit and the receipt of an attempt; None if it is not known, or too long ago."""
    found = db.execute("select seq, receipt from receipts where attempt=?", (attempt,)).fetchone()
    return None if found is None else (found[0], _receipt_decoder.decode(found[1]))


def receipts(db: sqlite3.Connection) -> list[tuple[int, Receipt]]:
    """All that are kept, each with its commit, oldest first."""
    found = db.execute("select seq, receipt from receipts order by until")
    return [(seq, _receipt_decoder.decode(packed)) for seq, packed in found]


def insert(db: sqlite3.Connection, rows: Sequence[Row], seq: int) -> None:
    """Put in rows that commit `seq` wrote."""
    db.executemany(_INSERT, ((*row, seq, is_blank(row)) for row in rows))
    db.executemany("insert into postings values(?, ?, ?)", (p for row in rows for p in postings_of(row)))


def remove(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Take out rows."""
    db.executemany(
        "delete from postings where field=? and value=? and vid=?", (p for r in rows for p in postings_of(r))
    )
    db.executemany("delete from rows where rid=?", ((row[0],) for row in rows))


def bury(db: sqlite3.Connection, rows: Iterable[Row], seq: int) -> None:
    """Remember that rows of earlier commits died in commit `seq`."""
    db.executemany("insert into deaths values(?, ?, ?)", ((seq, row[0], row[1]) for row in rows))


def rows_by_rid(db: sqlite3.Connection, rids: Sequence[int]) -> list[Row]:
    """The live rows of these rids."""
    return db.execute(
        f"select {_ROW} from rows where rid in (select value from json_each(?))", (json.dumps(rids),)
    ).fetchall()


def rows_by_id(db: sqlite3.Connection, ids: Sequence[int]) -> list[Row]:
    """The live rows of these chunk ids."""
    return db.execute(
        f"select {_ROW} from rows where id in (select value from json_each(?))", (json.dumps(ids),)
    ).fetchall()


def rows_by_vid(db: sqlite3.Connection, vids: Sequence[int]) -> list[Row]:
    """The live rows of these vids."""
    return db.execute(
        f"select {_ROW} from rows where vid in (select value from json_each(?))", (json.dumps(vids),)
    ).fetchall()


def row_by_key(db: sqlite3.Connection, file_id: str, chunk_index: int) -> Row | None:
    """The live row of a natural key."""
    found: Row | None = db.execute(
        f"select {_ROW} from rows where file_id=? and chunk_index=?", (file_id, chunk_index)
    ).fetchone()
    return found


def stored_rows(db: sqlite3.Connection, lo: int, hi: int, size: int) -> Iterator[pa.Table]:
    """The live rows with rids lo..hi as tables of at most `size` rows, by rid."""
    cursor = db.execute(f"select {COLUMNS} from rows where rid between ? and ? order by rid", (lo, hi))
    while found := cursor.fetchmany(size):
        columns = zip(*found, strict=True)
        yield pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def integers(db: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> IntVector:
    """The one column of a query."""
    return np.fromiter((value for (value,) in db.execute(sql, values)), np.int64)


def rebuild(
    db: sqlite3.Connection,
    tip: Tip,
    tables: Iterable[pa.Table],
    history: Iterable[Mapping[str, Any]] = (),
    receipts: Iterable[tuple[int, Receipt]] = (),
) -> None:
    """Replace everything by these, in one transaction: a reader sees the old view or the new one.

    Indexes come last and postings go in sorted: in random order both take several times as long.
    """
    db.execute("begin immediate")
    try:
        _execute_all(db, "".join(f"drop table if exists {name};" for name in _NAMES) + _TABLES)
        db.execute("create temp table staged(field, value, vid)")
        count = sum(_load(db, table) for table in tables)
        db.execute("insert into postings select field, value, vid from staged order by field, value, vid")
        db.execute("drop table staged")
        _execute_all(db, _INDEXES)
        db.execute(f"pragma user_version={_VERSION}")
        db.execute("insert into tip values(0, '', 1, 0, '', '[]', 0)")
        write_tip(db, replace(tip, count=count))
        remember(db, history)
        keep_receipts(db, receipts)
        db.execute("commit")
    except BaseException:
        db.execute("rollback")
        raise


def _load(db: sqlite3.Connection, table: pa.Table) -> int:
    stored = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    db.executemany(_INSERT, ((*row, is_blank(row)) for row in stored))
    db.executemany("insert into staged values(?, ?, ?)", (p for row in stored for p in postings_of(row)))
    return len(stored)


def _execute_all(db: sqlite3.Connection, script: str) -> None:
    """As `executescript`, which would commit first."""
    for statement in filter(str.strip, script.split(";")):
        db.execute(statement)


_receipt_encoder = msgspec.msgpack.Encoder()
_receipt_decoder = msgspec.msgpack.Decoder(Receipt)
