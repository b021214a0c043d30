"""Records what a stage is trained with, and refuses to go on with anything else.

STAGE/trained_with.json holds the settings, a digest of the data and the state of the source stage at the first step. A
checkpoint that is continued with the same record gives the numbers of an uninterrupted run; continued with another one
it is the model of neither command.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidjax.data.latents import Latents
from vidjax.data.pipeline import Dataset
from vidjax.errors import InputError
from vidjax.runtime.processes import say
from vidjax.runtime.run_files import read_json
from vidjax.runtime.storage import AnyPath, list_files, set_aside, write_json
from vidjax.settings import flatten
from vidjax.training.checkpoint import Checkpoints

NAME = "trained_with.json"
CLIPS_SAMPLED = 64  # clips of a data set that its digest looks at
ENDS = 2**16  # bytes at the start and at the end of a weight file that its digest holds

# May differ between two starts: no number of the training depends on it, or the digest of the data says more.
FREE = ("sample", "mesh", "finetune.source_weight", "train.remat", "train.log_every", "train.save_every", "train.keep")
FREE += ("train.keep_every", "train.sample_every", "train.validate_every", "data.workers", "data.prefetch")
FREE += ("data.cache", "data.source", "data.path", "data.video", "data.split")
AUTOENCODER = ("data", "autoencoder", "discriminator", "perceptual", "loss", "optimizer", "train", "seed", "objective")
AUTOENCODER += ("pretrained", "finetune", "model")


def settings_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage that its numbers depend on by dotted name, such as {"data.size": 64}.

    section: the config as that stage sees it.
    """
    autoencoder = section.get("objective") == "autoencoder"
    used = {key: value for key, value in section.items() if not autoencoder or key in AUTOENCODER}
    if autoencoder and "finetune" not in section:
        used.pop("model", None)  # the U-Net's, of the stage after it
    free = (*FREE, "data.latents") if autoencoder else FREE
    found = {key: value for key, value in flatten(used).items() if value is not None and not _under(key, free)}
    if section.get("pretrained") and Path(section["pretrained"]).is_dir():
        found["pretrained"] = digest_of_weights(Path(section["pretrained"]))
    return json.loads(json.dumps(found))


def _under(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def digest_of_weights(folder: Path) -> str:
    """SHA-256 of names, sizes and both ends of the files in a folder, which may lie elsewhere the next time."""
    digest = hashlib.sha256()
    for name, (size, _) in sorted(list_files(folder).items()):
        if name.endswith((".json", ".safetensors")):
            digest.update(f"{name} {size}".encode())
            with (folder / name).open("rb") as file:
                digest.update(file.read(ENDS))
                file.seek(max(size - ENDS, 0))
                digest.update(file.read(ENDS))
    return digest.hexdigest()


def digest_of_data(dataset: Dataset | Latents) -> dict[str, Any]:
    """The number of clips, the first one's name, and a SHA-256 of names, captions, classes and sizes in bytes of some
    that lie evenly among them; of stored latents, of the captions."""
    listed: list[Any] = list(dataset.texts) if isinstance(dataset, Latents) else []
    if isinstance(dataset, Dataset):
        for item in map(dataset.item, dataset.sample_of(CLIPS_SAMPLED)):
            size = os.path.getsize(item.name) if os.path.isfile(item.name) else None
            listed.append((os.path.basename(item.name), item.text, item.label, size, *item.others))
        if dataset.buckets:
            listed.append(dataset.buckets)
    first = listed[0] if isinstance(listed[0], str) else listed[0][0]
    return {"clips": len(dataset), "first": first, "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}


def describe_source(folder: AnyPath) -> dict[str, Any]:
    """The stage in `folder` as the next one finds it: its newest step, its last one, the statistics of its latents."""
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest()
    latents, record = folder / "latents.json", folder / NAME
    last = read_json(record)["settings"].get("train.steps") if record.exists() else step
    return {"step": step, "last": last, "latents": read_json(latents) if latents.exists() else None}


def recorded(folder: AnyPath, part: str) -> Any:
    """A part of the record of a stage; None if that has no checkpoint yet, or none was kept."""
    saved = folder / "checkpoints"
    begun = saved.is_dir() and any(path.name.isdigit() for path in saved.iterdir())
    return read_json(folder / NAME).get(part) if begun and (folder / NAME).exists() else None


def check_settings(
    folder: AnyPath, settings: Mapping[str, Any], allow: bool, defaults: Mapping[str, Any] | None = None
) -> None:
    """Raises InputError if the stage in `folder` was trained with other settings than these; `defaults` are the values
    of those that are not named.

    A longer training is no other one where the learning rate of a step does not depend on the length. With `allow` an
    unfinished stage may go on with other settings.
    """
    before = recorded(folder, "settings")
    if before is None:
        return
    before, settings = ({**(defaults or {}), **each} for each in (before, settings))
    keys = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if settings.get("optimizer.schedule", "constant") == "constant":
        keys = [key for key in keys if key != "train.steps"]
    if keys:
        said = ", ".join(f"config.{key}={before.get(key)!r}" for key in keys[:3])
        now = ", ".join(repr(settings.get(key)) for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        _refuse(folder, f"{said}{more}, not {now}", allow, finished=keys != ["train.steps"])


def check_data(folder: AnyPath, dataset: Dataset | Latents, allow: bool) -> None:
    """Raises InputError if the stage in `folder` was trained on other clips than these. `allow` as above."""
    before = recorded(folder, "data")
    if before and before != (now := digest_of_data(dataset)):
        clips = "{clips} clips, the first one {first!r}".format
        what = f"{clips(**before)}, not the {clips(**now)}, that data.path has now"
        _refuse(folder, what, allow)


def check_source(folder: AnyPath, source: AnyPath, allow: bool) -> None:
    """Raises InputError if the stage in `folder` was trained on another state of the stage in `source`.

    If that stage was cut short then (--max_steps) and has gone on since, the stage in `folder` was a trial: it is set
    aside, and starts anew.
    """
    before = recorded(folder, "source")
    if not before or before == (now := describe_source(source)):
        return
    if before["latents"] and not now["latents"]:  # lost: whoever reads them says so
        return
    if before["step"] < before["last"]:
        aside = set_aside(folder, "old")
        say(
            f"{folder.name}: was a trial on step {before['step']} of {before['last']} of stage {source.name}, which is "
            f"at step {now['step']} now: starts anew; the trial is kept as {aside.name}"
        )
        return
    what = f"stage {source.name} at step {before['step']}, which has changed since (step {now['step']})"
    _refuse(folder, what, allow)


def write(folder: AnyPath, settings: Mapping[str, Any], dataset: Dataset | Latents, source: AnyPath | None) -> None:
    """Records what the stage in `folder` is trained with from now on."""
    made = {"settings": settings, "data": digest_of_data(dataset)}
    write_json(folder / NAME, made | ({"source": describe_source(source)} if source else {}))


def _refuse(folder: AnyPath, what: str, allow: bool, finished: bool = True) -> None:
    """Raises InputError unless `allow` and the stage goes on; `finished`: done.json says that it does not."""
    finished = finished and (folder / "done.json").exists()
    if allow and not finished:
        say(f"{folder.name}: trained so far with {what}: goes on, and no longer is the run of one command")
        return
    hint = "" if finished else ", or add --allow_changes, and what follows is the run of neither"
    raise InputError(
        f"stage {folder.name} in {folder.parent} was trained with {what}: take another --workdir, or move {folder} away"
        f"{hint}"
    )
