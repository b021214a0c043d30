"""The videos that were asked for: they wait, are made, and are kept for a while; all in a file, whoever is killed."""

import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidjax.serving.database import Database
from vidjax.serving.files import RUN, TYPES
from vidjax.serving.keys import User, check_allowances
from vidjax.serving.limits import Limits
from vidjax.serving.refused import Refused

WAITING, RUNNING, DONE, FAILED, CANCELLED = "queued", "in_progress", "completed", "failed", "cancelled"
MAKE, TUNE = "video", "tune"  # kinds of jobs: what workers make, and what a tuner does
MAX_TRIES = 3  # of a video during which workers died
LEFT_SECONDS = 3600.0  # after which a folder without a job is removed
LONGEST_ALLOWANCE = 86400.0


@dataclass(frozen=True)
class Job:
    """One video, or one tuned model, that was asked for; `settings` are those of `requests.settle`, times are seconds
    since 1970."""

    number: int
    id: str
    kind: str
    owner: str
    settings: dict[str, Any]
    status: str
    step: int
    preview: int
    tries: int
    created: float
    started: float | None
    completed: float | None
    expires: float | None
    code: str | None
    message: str | None
    remixed_from: str | None
    digest: str | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> "Job":
        """Reads a row of the table."""
        values = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "settings": json.loads(row["settings"])})


def new_id(kind: str = MAKE) -> str:
    """Makes a name for a job that nobody can guess."""
    return f"{kind}_{secrets.token_hex(16)}"


class Jobs:
    """The jobs of a database, with a folder each beside it."""

    def __init__(self, database: Database, limits: Limits):
        self.database, self.limits, self.videos = database, limits, database.file.parent / "videos"

    def folder(self, id: str) -> Path:
        """Where a job's files are."""
        return self.videos / id

    def add(
        self,
        user: User,
        settings: Mapping[str, Any],
        *,
        id: str | None = None,
        kind: str = MAKE,
        together: str = "",
        remixed_from: str | None = None,
        idempotency: str | None = None,
        digest: str | None = None,
    ) -> Job:
        """Lets a video wait, as (owner, `idempotency`) at most once. `together` is equal for jobs that may be made at
        once. Raises Refused if the queue or the user's allowance is full, or the user tunes or keeps too many."""
        id, now = id or new_id(kind), time.time()
        with self.database.write() as connection:
            self._check_room(connection, user, now, kind)
            connection.execute("insert into uses values (?, ?)", (user.name, now))
            columns = "id, kind, owner, settings, model, together, status, created, remixed_from, idempotency, digest"
            values = (id, kind, user.name, json.dumps(settings), settings["model"], together, WAITING, now)
            connection.execute(
                f"insert into jobs ({columns}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, remixed_from, idempotency, digest),
            )
            return Job.of(connection.execute("select * from jobs where id = ?", (id,)).fetchone())

    def check_room(self, user: User, kind: str = MAKE) -> None:
        """Raises Refused if `add` would."""
        with self.database.read() as connection:
            self._check_room(connection, user, time.time(), kind)

    def _check_room(self, connection: sqlite3.Connection, user: User, now: float, kind: str) -> None:
        if kind == TUNE:
            own = "select status from jobs where kind = ? and owner = ?"
            found = [row["status"] for row in connection.execute(own, (TUNE, user.name))]
            if WAITING in found or RUNNING in found:
                raise Refused(429, "tunes_already", "one model at a time is tuned for a user: wait, or cancel that", 60)
            if (kept := found.count(DONE)) >= self.limits.tuned:
                how = "remove one first, on the page's tab Tune or with DELETE /v1/tunes/ID"
                raise Refused(
                    409, "too_many_tunes", f"you keep {kept} tuned models, {self.limits.tuned} are the most: {how}"
                )
        waiting = connection.execute("select count(*) from jobs where status = ?", (WAITING,)).fetchone()[0]
        if waiting >= self.limits.queue:
            raise Refused(429, "queue_full", f"{waiting} videos wait already: try again later", self._wait(connection))
        check_allowances(connection, user, now)

    def _wait(self, connection: sqlite3.Connection) -> int:
        """Estimates in how many seconds the next video is done: as long as the last ones took."""
        of_kind = "from jobs where status = ? and kind = ? order by number desc limit 20"
        took = f"select completed - started as took {of_kind}"
        found = [row["took"] for row in connection.execute(took, (DONE, MAKE)) if row["took"] is not None]
        return max(1, round(sum(found) / len(found))) if found else 10

    def repeated(self, user: User, idempotency: str, digest: str) -> Job | None:
        """Finds the job that an earlier request with the same key made. Raises Refused if that was another request."""
        with self.database.read() as connection:
            query = "select * from jobs where owner = ? and idempotency = ?"
            row = connection.execute(query, (user.name, idempotency)).fetchone()
        if row is not None and row["digest"] != digest:
            raise Refused(409, "idempotency_mismatch", "this key was used for another request: take a new one")
        return row and Job.of(row)

    def get(self, user: User, id: str) -> Job:
        """Finds a user's job. Raises Refused if there is none, or if it is another user's."""
        with self.database.read() as connection:
            row = connection.execute("select * from jobs where id = ? and owner = ?", (id, user.name)).fetchone()
        if row is None:
            raise Refused(404, "not_found", "there is no such video; it may have expired")
        return Job.of(row)

    def list(
        self, user: User, limit: int, after: str | None, descending: bool, kind: str = MAKE
    ) -> tuple[list[Job], bool]:
        """Returns up to `limit` jobs of a user behind the job `after`, and whether there are more. Raises Refused."""
        start = self.get(user, after).number if after else None
        sign, order = ("<", "desc") if descending else (">", "asc")
        behind = "" if start is None else f"and number {sign} {start}"
        query = f"select * from jobs where owner = ? and kind = ? {behind} order by number {order} limit ?"
        with self.database.read() as connection:
            rows = connection.execute(query, (user.name, kind, limit + 1)).fetchall()
        return [Job.of(row) for row in rows[:limit]], len(rows) > limit

    def position(self, job: Job) -> int | None:
        """Counts the jobs before one that waits: 0 for the next."""
        if job.status != WAITING:
            return None
        with self.database.read() as connection:
            query = "select count(*) from jobs where status = ? and kind = ? and number < ?"
            return connection.execute(query, (WAITING, job.kind, job.number)).fetchone()[0]

    def cancel(self, user: User, id: str) -> Job:
        """Ends a job that is not done; a worker that makes it stops after the step that it is in. Raises Refused."""
        self.get(user, id)
        with self.database.write() as connection:
            waits = connection.execute("select 1 from jobs where id = ? and status = ?", (id, WAITING)).fetchone()
            self._end(connection, id, CANCELLED, "cancelled", "it was cancelled")
        if waits:
            self.clear([id])
        return self.get(user, id)

    def remove(self, user: User, id: str) -> None:
        """Removes a job and its files; a worker that makes it stops. Raises Refused."""
        with self.database.write() as connection:
            gone = connection.execute("delete from jobs where id = ? and owner = ?", (id, user.name)).rowcount
        if not gone:
            raise Refused(404, "not_found", "there is no such video; it may have expired")
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def clear(self, ids: Sequence[str]) -> None:
        """Removes all files of jobs that were removed meanwhile, and what only served to make those that have ended."""
        for id in ids:
            with self.database.read() as connection:
                row = connection.execute("select status from jobs where id = ?", (id,)).fetchone()
            if row is None:
                shutil.rmtree(self.folder(id), ignore_errors=True)
            elif row["status"] not in (WAITING, RUNNING) and self.folder(id).exists():
                kept = {*TYPES, RUN} if row["status"] == DONE else {*TYPES}
                for file in [file for file in self.folder(id).iterdir() if file.name not in kept]:
                    shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)

    def claim(self, worker: str, most: int = 1, kind: str = MAKE) -> Sequence[Job]:
        """Gives a worker the job that waits longest, and up to `most` in all that may be made with it."""
        next_one = "select * from jobs where status = ? and kind = ? order by number limit 1"
        with self.database.read() as connection:
            if connection.execute(next_one, (WAITING, kind)).fetchone() is None:
                return []
        with self.database.write() as connection:
            first = connection.execute(next_one, (WAITING, kind)).fetchone()
            if first is None:
                return []
            rows = [first]
            if first["together"] and most > 1:
                query = "select * from jobs where status = ? and together = ? order by number limit ?"
                rows = connection.execute(query, (WAITING, first["together"], most)).fetchall()
            for row in rows:
                change = "update jobs set status = ?, worker = ?, started = ?, step = 0, tries = tries + 1 where id = ?"
                connection.execute(change, (RUNNING, worker, time.time(), row["id"]))
        return [Job.of(row) for row in rows]

    def advance(self, worker: str, ids: Sequence[str], step: int, preview: int) -> set[str]:
        """Notes how far jobs are, and returns those that are still this worker's."""
        kept = set()
        with self.database.write(durable=False) as connection:
            for id in ids:
                change = "update jobs set step = ?, preview = ? where id = ? and worker = ? and status = ?"
                if connection.execute(change, (step, preview, id, worker, RUNNING)).rowcount:
                    kept.add(id)
        return kept

    def complete(self, worker: str, id: str) -> bool:
        """Ends a job whose files are written; False if it is no longer this worker's."""
        now = time.time()
        with self.database.write() as connection:
            change = "update jobs set status = ?, completed = ?, expires = ? where id = ? and worker = ? and status = ?"
            values = (DONE, now, now + 3600 * self.limits.hours, id, worker, RUNNING)
            return bool(connection.execute(change, values).rowcount)

    def fail(self, worker: str, id: str, code: str, message: str) -> None:
        """Ends a job of this worker that cannot be made."""
        with self.database.write() as connection:
            self._end(connection, id, FAILED, code, message, "and worker = ?", (worker,))

    def _end(
        self,
        connection: sqlite3.Connection,
        id: str,
        status: str,
        code: str,
        message: str,
        which: str = "",
        values: tuple[str, ...] = (),
    ) -> None:
        now = time.time()
        change = "update jobs set status = ?, code = ?, message = ?, completed = ?, expires = ?, worker = null"
        ended = (status, code, message, now, now + 3600 * self.limits.hours, id, WAITING, RUNNING)
        connection.execute(f"{change} where id = ? and status in (?, ?) {which}", (*ended, *values))

    def recover(self, worker: str | None = None) -> None:
        """Lets jobs wait again, at their old place, that a worker had in hand when it died, by default all: the server
        ended, which is no job's fault. One that took `MAX_TRIES` workers with it fails, and so do models to tune where
        none are any more."""
        which, values = ("and worker = ?", (worker,)) if worker else ("", ())
        with self.database.write() as connection:
            if not worker:
                connection.execute("update jobs set tries = tries - 1 where status = ?", (RUNNING,))
            query = f"select id from jobs where status = ? and tries >= ? {which}"
            dead = connection.execute(query, (RUNNING, MAX_TRIES, *values)).fetchall()
            for row in dead:
                self._end(connection, row["id"], FAILED, "worker_died", "the program that made it ended several times")
            change = f"update jobs set status = ?, worker = null, step = 0 where status = ? {which}"
            connection.execute(change, (WAITING, RUNNING, *values))
            tunes = connection.execute("select id from jobs where status = ? and kind = ?", (WAITING, TUNE)).fetchall()
            unwanted = [] if self.limits.tune_steps else tunes
            for row in unwanted:
                self._end(connection, row["id"], FAILED, "not_allowed", "this server no longer tunes models")
        self.clear([row["id"] for row in dead + unwanted])

    def expire(self) -> None:
        """Removes jobs whose time is over, with their files, and files without a job."""
        now = time.time()
        with self.database.write() as connection:
            rows = connection.execute("select id from jobs where expires < ?", (now,)).fetchall()
            connection.execute("delete from jobs where expires < ?", (now,))
            connection.execute("delete from uses where at < ?", (now - LONGEST_ALLOWANCE,))
            known = {row["id"] for row in connection.execute("select id from jobs")}
        for row in rows:
            shutil.rmtree(self.folder(row["id"]), ignore_errors=True)
        for folder in self.videos.iterdir() if self.videos.exists() else ():
            if folder.name not in known and folder.stat().st_mtime < now - LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    def counts(self) -> dict[str, int]:
        """Counts the jobs in each state."""
        with self.database.read() as connection:
            return dict(connection.execute("select status, count(*) from jobs group by status").fetchall())
