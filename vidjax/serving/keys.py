"""Keys: who may ask for videos, and how many in a while. Only their hashes are stored."""

import hashlib
import re
import secrets
import sqlite3
import time
from dataclasses import dataclass

from vidjax.errors import InputError
from vidjax.serving.database import Database
from vidjax.serving.refused import Refused

SECONDS = {"s": 1, "min": 60, "hour": 3600, "day": 86400}
PREFIX = "vj-"
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOCAL = "local"  # whoever asks a server that wants no keys


@dataclass(frozen=True)
class Allowance:
    """At most `count` videos in each window of so many seconds."""

    count: int
    seconds: int
    text: str

    @classmethod
    def parse(cls, text: str) -> "Allowance":
        """Parses 10/min. Raises InputError."""
        found = re.fullmatch(rf"(\d{{1,9}})/({'|'.join(SECONDS)})", text)
        if not found:
            raise InputError(f"{text!r} is no rate: write 10/min, with s, min, hour or day")
        return cls(int(found[1]), SECONDS[found[2]], text)


@dataclass(frozen=True)
class User:
    """Whoever holds a key; sees only videos of their own."""

    name: str
    allowances: tuple[Allowance, ...] = ()


def digest(token: str) -> str:
    """Hashes a key; it is random in full, so that one round is enough."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


class Keys:
    """The keys of a database."""

    def __init__(self, database: Database):
        self.database = database

    def add(self, name: str, rate: str | None = None, quota: str | None = None) -> str:
        """Makes a key for a new name and returns it, for the only time. Raises InputError."""
        if not NAMES.fullmatch(name) or name == LOCAL:
            raise InputError(f"{name!r} is no name for a key: take up to 64 letters, digits, dots, - and _")
        for text in (rate, quota):
            if text:
                Allowance.parse(text)
        token = PREFIX + secrets.token_urlsafe(32)
        try:
            with self.database.write() as connection:
                values = (name, digest(token), rate, quota, time.time())
                connection.execute("insert into keys values (?, ?, ?, ?, ?)", values)
        except sqlite3.IntegrityError:
            raise InputError(f"{name} has a key: remove it first (keys remove {name}), or take another name") from None
        return token

    def remove(self, name: str) -> None:
        """Takes a key and its videos away: whoever has that name next sees none of them, and none counts. Raises
        InputError if there is none of that name."""
        with self.database.write() as connection:
            for table in ("jobs", "uses"):
                connection.execute(f"delete from {table} where owner = ?", (name,))
            if not connection.execute("delete from keys where name = ?", (name,)).rowcount:
                raise InputError(f"there is no key of {name}; see keys list")

    def list(self) -> list[dict[str, str | float | None]]:
        """Returns name, rate, quota and time of each key."""
        with self.database.read() as connection:
            found = connection.execute("select name, rate, quota, created from keys order by name").fetchall()
        return [dict(row) for row in found]

    def find(self, token: str) -> User | None:
        """Returns whose key this is."""
        with self.database.read() as connection:
            row = connection.execute("select * from keys where hash = ?", (digest(token),)).fetchone()
        return row and user_of(row)

    def hash_of(self, name: str) -> str | None:
        """Returns the hash of the key of that name, if there is one."""
        with self.database.read() as connection:
            row = connection.execute("select hash from keys where name = ?", (name,)).fetchone()
        return row and row["hash"]

    def named(self, name: str) -> User | None:
        """Returns the user of that name, if there is a key."""
        with self.database.read() as connection:
            row = connection.execute("select * from keys where name = ?", (name,)).fetchone()
        return row and user_of(row)


def user_of(row: sqlite3.Row) -> User:
    """Reads a row of the table of keys."""
    return User(row["name"], tuple(Allowance.parse(text) for text in (row["rate"], row["quota"]) if text))


def check_allowances(connection: sqlite3.Connection, user: User, now: float) -> None:
    """Raises Refused if one more video is more than a user may have."""
    for allowance in user.allowances:
        since = now - allowance.seconds
        times = "select at from uses where owner = ? and at > ? order by at desc limit 1 offset ?"
        if not allowance.count:
            raise Refused(403, "not_allowed", f"this key is for {allowance.text}: it may look, not ask")
        last = connection.execute(times, (user.name, since, allowance.count - 1)).fetchone()
        if last:
            wait = max(1, int(last["at"] - since) + 1)
            raise Refused(429, "rate_limit_exceeded", f"{allowance.text} is what this key may ask for", wait)
