"""Takes orders for videos and for tuned models: from the fields and files of a request to a job that waits."""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vidjax.data.video_reading import read_frames
from vidjax.serving import requests, uploads
from vidjax.serving.files import INPUT, MASK, VIDEO
from vidjax.serving.jobs import DONE, MAKE, TUNE, Job, Jobs, new_id
from vidjax.serving.keys import User
from vidjax.serving.refused import Refused
from vidjax.serving.requests import Card, TuneAsk

MAX_TUNED = 100  # models of one user that are offered
Known = tuple[str | None, str]  # a request's idempotency key and hash


class Orders:
    """Orders of users, for the models on `cards`; each is noted in the log `audit`, also those that come from the page,
    whose requests do not tell who sent them."""

    def __init__(self, jobs: Jobs, cards: Mapping[str, Card], audit: logging.Logger | None = None):
        self.jobs, self.cards, self.audit = jobs, dict(cards), audit

    def cards_of(self, user: User) -> dict[str, Card]:
        """Returns the models that a user may ask: the server's, and those that the user has tuned."""
        tuned, _ = self.jobs.list(user, MAX_TUNED, None, True, TUNE)
        found = [(job, self.cards.get(job.settings["model"])) for job in tuned if job.status == DONE]
        return self.cards | {job.id: requests.tuned_card(job.id, job.settings, base) for job, base in found if base}

    def create(
        self, user: User, fields: dict[str, Any], content: bytes | None = None, idempotency: str | None = None
    ) -> Job:
        """Lets a video wait that starts from noise, or from the picture or clip in `content`. Raises Refused."""
        digest = digest_of(fields, content)
        return self._once(user, idempotency, digest, lambda: self._create(user, fields, content, (idempotency, digest)))

    def _create(self, user: User, fields: dict[str, Any], content: bytes | None, known: Known) -> Job:
        ask = requests.parse(fields)
        reference = uploads.kind_of(content) if content else ""
        settings = requests.settle(ask, self.cards_of(user), self.jobs.limits, reference)
        self.jobs.check_room(user)
        frames = None
        if content:
            frames = uploads.read_upload(content, settings["frames"], (settings["height"], settings["width"]))
        return self._add(user, settings, frames, known)

    def edit(
        self,
        user: User,
        fields: dict[str, Any],
        content: bytes | None,
        mask: bytes | None = None,
        idempotency: str | None = None,
    ) -> Job:
        """Lets a video wait that is the clip in `content` changed by the prompt, where the picture `mask` is white and
        in the frames `edit_frames`, by default everywhere. Raises Refused."""
        digest = digest_of({"edit": hashlib.sha256(mask or b"").hexdigest(), **fields}, content)
        make = lambda: self._edit(user, fields, content, mask, (idempotency, digest))
        return self._once(user, idempotency, digest, make)

    def _edit(self, user: User, fields: dict[str, Any], content: bytes | None, mask: bytes | None, known: Known) -> Job:
        ask = requests.parse(fields)
        if not content or uploads.kind_of(content) != "clip":
            raise requests.invalid("an edit wants a clip as its input_reference")
        settings = requests.settle(ask, self.cards_of(user), self.jobs.limits, "edit")
        size = settings["height"], settings["width"]
        where = np.ones((settings["frames"], *size), bool)
        if ask.edit_frames:
            first, last = requests.range_of(ask.edit_frames, len(where))
            where[:first] = where[last:] = False
        self.jobs.check_room(user)
        if mask:
            where &= uploads.read_mask(mask, size)
        if not where.any():
            raise Refused(400, "invalid_mask", "the mask is black: make it white where the edit may go")
        frames = uploads.read_upload(content, settings["frames"], size)
        return self._add(user, settings, frames, known, mask=None if where.all() else where)

    def tune(
        self, user: User, fields: dict[str, Any], contents: Sequence[bytes], idempotency: str | None = None
    ) -> Job:
        """Lets a model wait that is one of the server's, tuned on one clip or several pictures. Raises Refused."""
        digest = digest_of({"tune": True, **fields}, b"".join(hashlib.sha256(each).digest() for each in contents))
        return self._once(user, idempotency, digest, lambda: self._tune(user, fields, contents, (idempotency, digest)))

    def _tune(self, user: User, fields: dict[str, Any], contents: Sequence[bytes], known: Known) -> Job:
        ask = requests.parse(fields, TuneAsk)
        kinds = {uploads.kind_of(each) for each in contents}
        if not contents or ("clip" in kinds and len(contents) > 1) or len(contents) > uploads.MAX_PICTURES:
            raise requests.invalid(f"tune on one clip, or on up to {uploads.MAX_PICTURES} pictures, as input_reference")
        reference = "clip" if "clip" in kinds else "pictures"
        settings = requests.settle_tuning(ask, self.cards, self.jobs.limits, reference)
        self.jobs.check_room(user, TUNE)
        size = settings["height"], settings["width"]
        frames = np.concatenate([uploads.read_upload(each, settings["frames"], size) for each in contents])
        return self._add(user, settings, frames, known, kind=TUNE)

    def remix(self, user: User, id: str, fields: dict[str, Any], idempotency: str | None = None) -> Job:
        """Lets a video wait that starts from a finished one, with its settings but for those in `fields`. Raises
        Refused."""
        digest = digest_of({"remix": id, **fields}, None)
        return self._once(user, idempotency, digest, lambda: self._remix(user, id, fields, (idempotency, digest)))

    def _remix(self, user: User, id: str, fields: dict[str, Any], known: Known) -> Job:
        ask = requests.parse(fields)
        source = self.jobs.get(user, id)
        if source.kind == TUNE:
            raise requests.invalid("a tuned model is no video to start from; name it as the model")
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
        settings = requests.settle(ask, self.cards_of(user), self.jobs.limits, "clip")
        self.jobs.check_room(user)
        frames = read_frames(self.jobs.folder(id) / VIDEO, range(how["frames"]), (how["height"], how["width"]))
        return self._add(user, settings, frames, known, remixed_from=id)

    def _add(
        self,
        user: User,
        settings: dict[str, Any],
        frames: Any,
        known: Known,
        remixed_from: str | None = None,
        mask: np.ndarray | None = None,
        kind: str = MAKE,
    ) -> Job:
        id, (idempotency, digest) = new_id(kind), known
        more = dict(remixed_from=remixed_from, idempotency=idempotency, digest=digest, kind=kind)
        with uploads.deleted_if_refused(self.jobs.folder(id)):
            for name, array in ((INPUT, frames), (MASK, mask)):
                if array is not None:
                    uploads.keep_input(self.jobs.folder(id), array, name)
            job = self.jobs.add(user, settings, id=id, together=requests.together(settings), **more)
        if self.audit:
            self.audit.info(json.dumps(dict(at=round(job.created, 3), user=user.name, job=id, model=settings["model"])))
        return job

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
