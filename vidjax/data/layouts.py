"""Reads data sets in their published layouts: folders of frames, UCF-101's lists, and paths that name the class."""

import glob
import os
import re
from pathlib import Path

from vidjax.data.pictures import sort_pictures
from vidjax.data.source import VIDEO_SUFFIXES, Source, check_exists, read_caption, source_of_paths
from vidjax.errors import InputError
from vidjax.runtime.inputs import decode, read_bytes


def frames(path: str, split: str = "") -> Source:
    """Finds all folders of pictures under `path`, each a clip of 25 frames per second, without a class.

    Sky Time-lapse's layout: sky_train/VIDEO/VIDEO_1/VIDEO_frames_00000046.jpg, 640x360. A caption is NAME.txt beside
    the folder NAME.
    """
    root = check_exists(path, "a folder with folders of pictures")
    folders = sorted(Path(folder) for folder, _, names in os.walk(root) if sort_pictures(names))
    if not folders:
        raise InputError(f"no folders of pictures in {path}: expected .../CLIP/frame_0001.jpg")
    return source_of_paths(folders, [read_caption(folder, "") for folder in folders])


LISTS = "ucfTrainTestlist"


def ucf101(path: str, split: str = "train") -> Source:
    """Finds UCF-101 as published: UCF-101/CLASS/v_CLASS_g01_c01.avi, with ucfTrainTestlist in that folder or beside it.

    `path` is UCF-101 or what it lies in. split: "train01" to "test03", the official ones; "train" and "test" are the
    first; "all" is every file. The class is the number in classInd.txt, from 0; the caption is its name in words. Files
    that a list names and the disk lacks show when they are read.
    """
    root = check_exists(path, "UCF-101's folder")
    root = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    lists = next((d for d in (root / LISTS, root.parent / LISTS) if d.is_dir()), None)
    if lists is None:
        raise InputError(f"no {LISTS} in {root} or beside it: unpack UCF101TrainTestSplits-RecognitionTask.zip there")
    index = lists / "classInd.txt"
    if short := [line for line in _lines(index) if len(line.split()) < 2]:
        raise InputError(f"{index} has the line {short[0]!r}: a line is a number and a class, 1 ApplyEyeMakeup")
    names = [line.split()[1] for line in _lines(index)]
    classes = {name: names.index(name) for name in names}
    if split == "all":
        files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.avi"))
    else:
        name = re.sub(r"^(train|test)(\d*)$", lambda m: f"{m[1]}list{m[2] or '01'}.txt", split)
        if not (lists / name).is_file():
            known = sorted(re.sub("list|.txt", "", f.name) for f in lists.glob("t*list*.txt"))
            raise InputError(f"data.split={split!r} has no list in {lists}: choose all or one of {', '.join(known)}")
        files = [line.split()[0] for line in _lines(lists / name)]
    groups = [file.split("/")[0] for file in files]
    for file, group in zip(files, groups):
        if group not in classes:
            raise InputError(f"{file} is of no class in {index}: move it out of {root}")
    words = [re.sub(r"(?<!^)(?=[A-Z])", " ", group).lower() for group in groups]
    return source_of_paths([root / file for file in files], words, [classes[g] for g in groups], len(names))


def _lines(path: Path) -> list[str]:
    return [line for line in decode(read_bytes(path), path).splitlines() if line.strip()]


def pattern(path: str, split: str = "") -> Source:
    """Finds clips whose path names their class: `path` has * for any part of a name and {word} for a part that matters.

    data/mead/*/video/front/{class}/{level}/*.mp4 finds MEAD's front views, M003/video/front/angry/level_1/001.mp4 of
    class angry and with caption "angry, level 1". {class} is the label; the caption is NAME.txt beside the clip, or
    else the named parts in their order. Folders of pictures count as clips, too.
    """
    words = re.findall(r"{(\w+)}", path)
    if len(set(words)) < len(words):
        raise InputError(f"data.path={path} names a part twice: use * for the parts that do not matter")
    if wrong := [word for word in words if not word.isidentifier()]:
        raise InputError(f"data.path={path} names a part {{{wrong[0]}}}: a name begins with a letter")
    parts = re.split(r"({\w+}|\*)", path)
    shape = "".join(f"(?P<{p[1:-1]}>[^/]+)" if p[:1] == "{" else "[^/]*" if p == "*" else re.escape(p) for p in parts)
    matches = {}
    for found in sorted(glob.glob(re.sub(r"{\w+}", "*", path))):
        match = re.fullmatch(shape, found)
        if match and (os.path.isdir(found) or Path(found).suffix.lower() in VIDEO_SUFFIXES):
            matches[Path(found)] = match.groupdict()
    if not matches:
        raise InputError(f"no videos at data.path={path}: * is any part of a name, {{class}} one that matters")
    texts = [read_caption(clip, ", ".join(named.values()).replace("_", " ")) for clip, named in matches.items()]
    names = sorted({named["class"] for named in matches.values()}) if "class" in words else []
    classes = {name: k for k, name in enumerate(names)}
    labels = [classes[named["class"]] if classes else -1 for named in matches.values()]
    return source_of_paths(list(matches), texts, labels, len(classes))
