"""How the shipped clips were cut: square crops of openly licensed footage, every frame of a stretch, at 15 fps.

    python vidjax/clips/make_clips.py bigbuckbunny.mp4 vtest.avi box.mp4 cup.mp4 cityCC0.mpg

takes the source files (ATTRIBUTION.md says whose they are), in any order, and writes the clips, clips.csv in WebVid's
columns and a contact sheet (`--sheet`).
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidjax.data.video_reading import read_frames, resize
from vidjax.data.video_writing import contact_sheet, write_mp4

FPS, SIZE = 15, 96
URLS = {
    "bigbuckbunny.mp4": "https://peach.blender.org",
    "cityCC0.mpg": "https://github.com/kivy/kivy/tree/master/examples/widgets",
}
OPENCV = "https://github.com/opencv/opencv"


@dataclass(frozen=True)
class Cut:
    """Frames first to last (not included); a square of `side` pixels around `centre` (x, y)."""

    name: str
    caption: str
    source: str
    first: int
    last: int
    side: int
    centre: tuple[int, int]


BUNNY = "bigbuckbunny.mp4"
CUTS = (
    Cut("bunny", "a fat grey rabbit stretches its arms in front of a hill", BUNNY, 44, 102, 640, (410, 350)),
    Cut("face", "a close-up of the face of a yawning grey rabbit", BUNNY, 56, 102, 330, (470, 165)),
    Cut("path", "a grey path along a green lawn", "vtest.avi", 352, 416, 140, (226, 226)),
    Cut("man", "a man in a black suit stands waiting on grey asphalt", "vtest.avi", 546, 602, 116, (655, 362)),
    Cut("office", "green light in the windows of an office block", "cityCC0.mpg", 24, 84, 180, (390, 150)),
    Cut("tower", "a white skyscraper against a dark blue night sky", "cityCC0.mpg", 118, 190, 400, (420, 205)),
    Cut("box", "a hand tilts a yellow box over a white table", "box.mp4", 8, 72, 380, (420, 190)),
    Cut("flask", "a hand holds a black flask in front of a white wall", "cup.mp4", 0, 40, 320, (400, 240)),
)


def cut_frames(cut: Cut, source: Path) -> np.ndarray:
    """The cropped frames, uint8 [t, 96, 96, 3]."""
    frames = read_frames(source, range(cut.first, cut.last))
    left, top = (
        int(np.clip(at - cut.side // 2, 0, most - cut.side)) for at, most in zip(cut.centre, frames.shape[2:0:-1])
    )
    return resize(frames[:, top : top + cut.side, left : left + cut.side], (SIZE, SIZE))


def main() -> None:
    """Cuts the clips out of their sources and writes them with their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    sources, rows, clips = {p.name: p for p in args.sources}, [], []
    for cut in CUTS:
        video = cut_frames(cut, sources[cut.source])
        write_mp4(args.out / "real" / f"{cut.name}.mp4", video, FPS, crf=18)
        clips.append(video)
        url = URLS.get(cut.source, OPENCV)
        rows.append([cut.name, url, f"PT00H00M{round(len(video) / FPS):02d}S", "real", cut.caption])
    with open(args.out / "clips.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["videoid", "contentUrl", "duration", "page_dir", "name"], *rows]
        )
    if args.sheet:
        last = [[v[np.linspace(0, len(v) - 17, 8).astype(int)], v[-16::2]] for v in clips]
        contact_sheet(args.sheet, last, [f"{c.name} ({len(v)}): {c.caption}" for c, v in zip(CUTS, clips)])


if __name__ == "__main__":
    main()
