"""The SQLite file that the processes of a server share: who may ask, what was asked, and how far it is."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

WAIT_SECONDS = 30.0  # for another process that writes
SCHEMA = """
create table if not exists keys (
    name text primary key, hash text not null unique, rate text, quota text, created real not null
);
create table if not exists uses (owner text not null, at real not null);
create index if not exists uses_of on uses (owner, at);
create table if not exists jobs (
    number integer primary key autoincrement,
    id text not null unique,
    owner text not null,
    settings text not null,
    model text not null,
    together text not null,
    status text not null,
    step integer not null default 0,
    preview integer not null default 0,
    worker text,
    tries integer not null default 0,
    created real not null,
    started real,
    completed real,
    expires real,
    code text,
    message text,
    remixed_from text,
    idempotency text,
    digest text,
    kind text not null default 'video',
    unique (owner, idempotency)
);
create index if not exists jobs_of on jobs (owner, number);
create index if not exists jobs_in on jobs (status, number);
"""


class Database:
    """A file of tables; each transaction has a connection of its own, so that threads and processes share nothing."""

    def __init__(self, file: Path):
        self.file = file
        with contextlib.closing(self._connect()) as connection:
            # Not WAL: before SQLite 3.51.3 two processes that write can damage such a file (its "WAL-reset bug").
            connection.execute("pragma journal_mode = delete")
            connection.executescript(SCHEMA)
            if "kind" not in {row["name"] for row in connection.execute("pragma table_info(jobs)")}:  # an older file
                connection.execute("alter table jobs add column kind text not null default 'video'")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=WAIT_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yields a connection that sees one state of all tables."""
        with contextlib.closing(self._connect()) as connection:
            connection.execute("begin")
            yield connection

    @contextlib.contextmanager
    def write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Yields a connection whose changes appear whole when the block ends, and not at all if it raises; `durable`:
        also after a power cut."""
        with contextlib.closing(self._connect()) as connection:
            connection.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
            connection.execute("begin immediate")
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")
