"""Takes orders for videos: from the fields and the file of a request to a job that waits."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from vidjax.data.video_reading import read_frames
from vidjax.serving import requests, uploads
from vidjax.serving.files import VIDEO
from vidjax.serving.jobs import DONE, Job, Jobs, new_id
from vidjax.serving.keys import User
from vidjax.serving.refused import Refused
from vidjax.serving.requests import Card

Known = tuple[str | None, str]  # a request's idempotency key and hash


class Orders:
    """Orders of users, for the models on `cards`."""

    def __init__(self, jobs: Jobs, cards: Mapping[str, Card]):
        self.jobs, self.cards = jobs, dict(cards)

    def create(
        self, user: User, fields: dict[str, Any], content: bytes | None = None, idempotency: str | None = None
    ) -> Job:
        """Lets a video wait that starts from noise, or from the picture or clip in `content`. Raises Refused."""
        digest = digest_of(fields, content)
        return self._once(user, idempotency, digest, lambda: self._create(user, fields, content, (idempotency, digest)))

    def _create(self, user: User, fields: dict[str, Any], content: bytes | None, known: Known) -> Job:
        ask = requests.parse(fields)
        settings = requests.settle(ask, self.cards, self.jobs.limits, uploads.kind_of(content) if content else "")
        self.jobs.check_room(user)
        frames = None
        if content:
            frames = uploads.read_upload(content, settings["frames"], (settings["height"], settings["width"]))
        return self._add(user, settings, frames, known)

    def remix(self, user: User, id: str, fields: dict[str, Any], idempotency: str | None = None) -> Job:
        """Lets a video wait that starts from a finished one, with its settings but for those in `fields`. Raises
        Refused."""
        digest = digest_of({"remix": id, **fields}, None)
        return self._once(user, idempotency, digest, lambda: self._remix(user, id, fields, (idempotency, digest)))

    def _remix(self, user: User, id: str, fields: dict[str, Any], known: Known) -> Job:
        ask = requests.parse(fields)
        source = self.jobs.get(user, id)
        if source.status != DONE:
            raise Refused(409, "not_completed", f"{id} is {source.status}: wait until it is completed")
        how = source.settings
        if set(fields) & {"frames", "seconds", "size", "model"}:
            raise requests.invalid("a remix has the model, the length and the size of its video; leave them out")
        kept = dict(model=how["model"], frames=how["frames"], size=f"{how['width']}x{how['height']}")
        kept |= dict(steps=how["steps"], guidance=how["guidance"], sampler=how["sampler"], seed=how["seed"])
        kept |= dict(negative_prompt=how["negative_prompt"], label=how["label"], prompt=how["prompt"])
        given = ask.model_dump(exclude_unset=True)
        ask = requests.parse({**kept, **given})
        settings = requests.settle(ask, self.cards, self.jobs.limits, "clip")
        self.jobs.check_room(user)
        frames = read_frames(self.jobs.folder(id) / VIDEO, range(how["frames"]), (how["height"], how["width"]))
        return self._add(user, settings, frames, known, remixed_from=id)

    def _add(
        self, user: User, settings: dict[str, Any], frames: Any, known: Known, remixed_from: str | None = None
    ) -> Job:
        id, (idempotency, digest) = new_id(), known
        more = dict(remixed_from=remixed_from, idempotency=idempotency, digest=digest)
        with uploads.deleted_if_refused(self.jobs.folder(id)):
            if frames is not None:
                uploads.keep_input(self.jobs.folder(id), frames)
            return self.jobs.add(user, settings, id=id, together=requests.together(settings), **more)

    def _once(self, user: User, idempotency: str | None, digest: str, make: Callable[[], Job]) -> Job:
        """Returns the job that an earlier request under the same key made, or makes it, also if two come at once."""
        if idempotency and (found := self.jobs.repeated(user, idempotency, digest)):
            return found
        try:
            return make()
        except sqlite3.IntegrityError:
            found = idempotency and self.jobs.repeated(user, idempotency, digest)
            if not found:
                raise
            return found


def digest_of(fields: Mapping[str, Any], content: bytes | None) -> str:
    """Hashes a request, to know it again."""
    text = json.dumps(fields, sort_keys=True, default=str).encode()
    return hashlib.sha256(text + b"\0" + hashlib.sha256(content or b"").digest()).hexdigest()
