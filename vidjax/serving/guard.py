"""Who may use the server: holders of keys, or on the machine itself whoever is there; and the log of who did."""

import ipaddress
import logging
import logging.handlers
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Request

from vidjax.serving.keys import LOCAL, Keys, User
from vidjax.serving.refused import Refused

AUDIT_BYTES, AUDIT_FILES = 2**24, 4


class Guard:
    """Finds the user of a request, as a dependency of its route."""

    def __init__(self, keys: Keys, require_keys: bool):
        self.keys, self.require_keys = keys, require_keys

    def __call__(self, request: Request) -> User:
        """Returns who sent a request. Raises Refused if a key is missing or unknown."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        user = self.keys.find(token.strip()) if kind.lower() == "bearer" else None
        if user is None:
            if self.require_keys:
                raise Refused(401, "invalid_api_key", "send a key of this server: Authorization: Bearer KEY")
            user = User(LOCAL)  # clients that must send some key send any
        request.state.user = user
        return user


def is_local(host: str) -> bool:
    """Whether a name or address is that of the machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def foreign(request: Request, require_keys: bool) -> Refused | None:
    """Refuses what a browser sends for a page of another site; without keys also other names of this machine, with
    which such a page could pass for its own."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return Refused(403, "cross_origin", "pages of other sites may not use this server")
    if not require_keys and not is_local(urlsplit(f"//{host}").hostname or ""):
        return Refused(403, "cross_origin", "without keys this server answers to localhost only")
    return None


def open_audit(file: Path) -> logging.Logger:
    """Opens the log of who asked for what, a line of JSON each; old parts of it go."""
    logger = logging.Logger(str(file), logging.INFO)
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=AUDIT_BYTES, backupCount=AUDIT_FILES)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    return logger
