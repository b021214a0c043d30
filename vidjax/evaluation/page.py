"""One self-contained page about a run, from whatever is there; `page.html` and `page.css` are what it looks like."""

import base64
import importlib.resources
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

from vidjax import settings
from vidjax.data.pipeline import DataConfig
from vidjax.errors import InputError, printable
from vidjax.runtime.inputs import read_bytes, read_json
from vidjax.runtime.run_files import read_metrics
from vidjax.runtime.storage import AnyPath, modification_time

MEDIA = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".mp4": "video/mp4"}
PANELS = {  # curves, where a stage has them
    "loss": "loss",
    "validation/loss": "loss on held-out windows",
    "psnr": "PSNR of the batch (dB)",
    "grad_norm": "gradient norm",
}
PCA, MEAN = "{:.1f} dB: PCA of patches, as many latents", "{:.1f} dB: the mean of the clip's windows, no model"
INK, ACCENT = "#010203", "#040506"  # stand for the page's colours


def write_report(workdir: AnyPath) -> AnyPath:
    """Writes the page of a run and returns its path. Parts that the run has not reached are left out.

    Raises: InputError if the folder holds no run.
    """
    if not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is no folder: name that of a run")
    stages = {path.parent.name: _metrics(path) for path in sorted(workdir.glob("*/metrics.jsonl"), key=_age)}
    config, summary = _json(workdir / "config.json"), _json(workdir / "summary.json")
    if not (stages or config or summary):
        raise InputError(f"--workdir={workdir} holds no run (no config.json, no summary.json): name the folder of one")
    parts = [
        _header(workdir, config, summary),
        _section("Samples", _samples(workdir, summary), "Each caption's samples side by side."),
        _section(
            "How good they are", _figures(summary), "Measured on windows of the clips that no stage was trained on."
        ),
        _section("Data", _data(config, summary), "What the last stage read."),
        _section(
            "Reconstructions", _reconstructions(workdir, summary), "Held-out frames above, the autoencoder's below."
        ),
        _section("Curves", _curves(stages), "Thin: every logged step. Thick: its running mean."),
        _section("Time", _timings(summary)),
        _section("What ran", _versions(summary) + _config(config)),
        _section("Next", _commands(summary)),
    ]
    title = escape(f"{workdir.resolve().name} · vidjax")
    page = _own_file("page.html").replace("{title}", title).replace("{style}", "\n" + _own_file("page.css"))
    page = page.replace("{body}", "\n".join(filter(None, parts)))
    path = workdir / "report.html"
    path.write_bytes(page.encode(errors="replace"))
    return path


def _own_file(name: str) -> str:
    """Reads a file that lies beside this module."""
    return importlib.resources.files("vidjax.evaluation").joinpath(name).read_text(encoding="utf-8")


def _header(workdir: AnyPath, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    total, data = sum(_numbers(summary.get("seconds")).values()), _map(config.get("data"))
    source = data and data.get("source", settings.defaults(DataConfig)["source"])
    facts = [
        source and f"data: {source}",
        summary.get("device"),
        total and f"{_duration(total)} in all",
        _finite(summary.get("peak_memory_gb")) and f"{summary['peak_memory_gb']:.1f} GB at most",
        "" if summary else "not finished",
    ]
    line = " · ".join(str(fact) for fact in facts if fact)
    return f"<header><h1>{escape(workdir.resolve().name)}</h1><p>{escape(line)}</p></header>"


def _figures(summary: Mapping[str, Any]) -> str:
    """What was measured, and what it is to be held against."""
    captions = summary.get("captions")
    of = f" of {captions:.0f}" if _finite(captions) else ""
    rows = [
        ("Reconstruction of held-out windows, PSNR", "autoencoder_psnr", "{:.1f} dB", "pca_psnr", PCA),
        ("Captions all of whose samples find their clip", "retrieval", "{:.0f}" + of, "", ""),
        ("Samples to the nearest window of their clip, PSNR", "sample_psnr", "{:.1f} dB", "mean_window_psnr", MEAN),
        ("The same, among all windows of their clip", "sample_psnr_all", "{:.1f} dB", "mean_window_psnr_all", MEAN),
        ("Motion of the samples, that of the clips being 100%", "motion_ratio", "{:.0%}", "", "100%"),
    ]
    cells = []
    for name, key, form, against, other in rows:
        if _finite(summary.get(key)):
            reference = other.format(summary[against]) if _finite(summary.get(against)) else "" if against else other
            cells.append((name, form.format(summary[key]), reference))
    cells += [
        (f"Samples that show {what}", f"{100 * share:.1f}%", "100%")
        for what, share in _numbers(summary.get("drawn")).items()
    ]
    return _table(("", "this run", "against"), cells)


def _data(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What was read, what could be used, and why the rest could not."""
    about, asked = _map(summary.get("data")), {**settings.defaults(DataConfig), **_map(config.get("data"))}
    if not about:
        return ""
    dropped = [_map(each) for each in _list(about.get("dropped"))]
    counts = f"{about.get('used')} of {about.get('looked_at')}"
    if about.get("looked_at") != about.get("clips"):
        counts += f" looked at, of {about.get('clips')} in all"
    between = lambda key: " to ".join(dict.fromkeys(map(str, _list(about.get(key)))))
    sizes = ", ".join(f"{size} ({count} clips)" for size, count in _map(about.get("sizes")).items())
    window = f"{asked.get('frames')} frames of {asked.get('size')}, the last {asked.get('heldout')} held out"
    rows = [
        ("source", f"{asked.get('source')} {asked.get('video') or asked.get('path') or ''}"),
        ("clips used", counts),
        ("their sizes, rows x columns", sizes),
        ("their frames", between("frames")),
        ("frames per second", between("fps")),
        ("windows", window),
    ]
    why = _table(("left out", "why"), [(each.get("clip"), each.get("why")) for each in dropped])
    return _table(("", ""), rows) + why


def _samples(workdir: AnyPath, summary: Mapping[str, Any]) -> str:
    """A card a caption: the samples moving, the nearest real windows if the run kept them, all frames on request."""
    cards = []
    for entry in map(_map, _list(summary.get("samples"))):
        moving = _row(workdir, entry.get("videos", entry.get("mp4")))
        sheet = _media(workdir, entry.get("png"))
        beside = [("the nearest real windows", entry.get("real")), ("the source", entry.get("source"))]
        real = "".join(f"<p class=note>{what}</p>{row}" for what, names in beside if (row := _row(workdir, names)))
        if moving or sheet:
            shown = (moving or sheet) + real
            more = (
                f"<details><summary>all frames</summary><div class=scroll>{sheet}</div></details>"
                if moving and sheet
                else ""
            )
            cards.append(
                f"<figure><figcaption>{escape(str(entry.get('caption', '')))}</figcaption>{shown}{more}</figure>"
            )
    return f"<div class=cards>{''.join(cards)}</div>" if cards else ""


def _reconstructions(workdir: AnyPath, summary: Mapping[str, Any]) -> str:
    figures = []
    for entry in map(_map, _list(summary.get("reconstructions"))):
        if picture := _media(workdir, entry.get("png")):
            caption = escape(str(entry.get("name", "")))
            figures.append(f"<figure><figcaption>{caption}</figcaption><div class=scroll>{picture}</div></figure>")
    return f"<div class='cards wide'>{''.join(figures)}</div>" if figures else ""


def _curves(stages: Mapping[str, list[dict[str, Any]]]) -> str:
    drawn = [(name, _plot(name, entries)) for name, entries in stages.items() if entries]
    return "".join(f"<h3>{escape(name)}</h3><div class=plot>{svg}</div>" for name, svg in drawn)


def _plot(stage: str, entries: list[dict[str, Any]]) -> str:
    """The stage's curves as one inline SVG in the colours of the page."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    shown = [key for key in PANELS if sum(_finite(entry.get(key)) for entry in entries) > 1] or ["loss"]
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": stage,
        "font.size": 9,
        "axes.linewidth": 0.6,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        figure.patch.set_alpha(0)
        for axes, key in zip(figure.subplots(1, 3), [*shown, *[""] * (3 - len(shown))]):
            if key:
                _panel(axes, key, entries)
            else:
                axes.set_axis_off()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor").replace(ACCENT, "var(--accent)")


def _panel(axes: Any, key: str, entries: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator

    points = [(entry["step"], entry[key]) for entry in entries if _finite(entry.get(key))]
    steps, values = zip(*points) if points else ((), ())
    smooth = len(points) >= 20
    axes.plot(
        steps,
        values,
        color=ACCENT,
        linewidth=0.8 if smooth else 1.6,
        alpha=0.4 if smooth else 1,
        marker="." if len(points) < 3 else "",
    )
    if smooth:
        axes.plot(steps, list(_running_mean(values, len(values) // 20)), color=ACCENT, linewidth=1.8)
    if values and key != "psnr" and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(PANELS[key], loc="left", color=INK, fontsize=9)
    axes.set_xlabel("step", color=INK)
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=INK, width=0.6)
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _running_mean(values: Iterable[float], width: int) -> Iterable[float]:
    """Exponential, its start corrected for the zero that it begins with."""
    total, weight, keep = 0.0, 0.0, 1 - 1 / max(width, 2)
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + 1 - keep
        yield total / weight


def _timings(summary: Mapping[str, Any]) -> str:
    times = _numbers(summary.get("seconds"))
    longest = max(times.values(), default=0) or 1
    bar = lambda value: f"<div class=bar style='width:{100 * value / longest:.1f}%'></div>"
    rows = (
        f"<tr><td>{escape(name)}<td class=n>{_duration(value)}<td class=fill>{bar(value)}"
        for name, value in times.items()
    )
    return f"<table>{''.join(rows)}</table>" if times else ""


def _versions(summary: Mapping[str, Any]) -> str:
    versions = " · ".join(f"{name} {version}" for name, version in _map(summary.get("versions")).items())
    return f"<p>{escape(versions)}</p>" if versions else ""


def _config(config: Mapping[str, Any]) -> str:
    rows = [(f"config.{path}", value) for path, value in _flat(config)]
    return f"<details><summary>the whole config</summary>{_table(('key', 'value'), rows)}</details>" if rows else ""


def _commands(summary: Mapping[str, Any]) -> str:
    lines = "\n".join(map(str, _list(summary.get("next"))))
    return f"<pre><code>{escape(lines)}</code></pre>" if lines else ""


def _section(title: str, body: str, note: str = "") -> str:
    return f"<section><h2>{title}</h2>{f'<p class=note>{note}</p>' if note else ''}{body}</section>" if body else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    line: Callable[[str, Iterable[Any]], str] = lambda tag, cells: "".join(
        f"<{tag}>{escape(str(c))}</{tag}>" for c in cells
    )
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        f"<div class=scroll><table><thead><tr>{line('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"
        if body
        else ""
    )


def _row(workdir: AnyPath, names: Any) -> str:
    """One or several videos, side by side."""
    found = [_media(workdir, name) for name in (names if isinstance(names, list) else [names])]
    return f"<div class=row>{''.join(found)}</div>" if any(found) else ""


def _media(workdir: AnyPath, name: Any) -> str:
    """The picture or video as an element with its bytes in it; nothing if it is missing or outside the run's folder."""
    path = workdir / str(name or "")
    try:
        inside = bool(name) and path.suffix in MEDIA and path.resolve().is_relative_to(workdir.resolve())
        content = read_bytes(path) if inside else b""
    except (InputError, OSError, ValueError):  # of a name, too
        return ""
    if not content:
        return ""
    source = f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(content).decode()}"
    if path.suffix == ".mp4":
        return f'<video src="{source}" autoplay loop muted playsinline controls></video>'
    return f'<img src="{source}" alt="{escape(path.stem)}">'


def _metrics(path: AnyPath) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; of one that cannot be read, none, and a warning."""
    try:
        return read_metrics(path)
    except InputError as error:
        print(f"warning: {printable(str(error))}", file=sys.stderr)
        return []


def _json(path: AnyPath) -> Mapping[str, Any]:
    """What is in a file of the run; of one that is damaged, nothing, and a warning."""
    if not path.exists():
        return {}
    try:
        return _map(read_json(path))
    except InputError as error:
        print(f"warning: {printable(str(error))}", file=sys.stderr)
        return {}


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: Any) -> dict[str, float]:
    return {name: number for name, number in _map(value).items() if _finite(number)}


def _flat(config: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, json.dumps(config)


def _age(path: AnyPath) -> float:
    """When the stage ran: its folder's first file, near enough; stages are shown in their order."""
    return min((modification_time(child) for child in path.parent.iterdir() if child.is_file()), default=0.0)


def _finite(value: Any) -> bool:
    """Whether it can be drawn and written with a few digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
