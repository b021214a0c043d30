"""Whole programs on odd command lines and in damaged runs: `python fuzz_programs.py COUNT`.

Runs in the folder that it fills, where it trains a small run first. A process that has imported what programs import
forks for each of them, and that calls its `main` for one input after the other: what a user would see is kept.
"""

import contextlib
import faulthandler
import io
import json
import os
import runpy
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fuzz_inputs import ODD, ROOT, altered, mutated

LIMIT = 60  # seconds an input, on a busy machine
RECIPE = f"--config={ROOT}/tests/tiny.py:pixels"
TRAIN = ["--stage=diffusion", "--max_steps=1", "--config.stages.diffusion.train.sample_every=0"]
CLIPS = ROOT / "vidjax" / "clips" / "real"
SHARES = {"report": 40, "sample": 14, "evaluate": 20, "export": 10, "main": 6, "watermark": 8, "plan": 2}
OUTPUTS = ["file", "file/x", "/proc/x", "dangling", "pipe", "y" * 300, "a/" + "y" * 300, "a\0b", "gs://", "s3://b/x"]
TEXTS = ["", " ", "nothing", "-1", "1e999", "nan", "\udcff", "a\nb", "\x1b[2J", "☃" * 90, "--", "x" * 5000, "{}", "%s"]
STAGE, SAVED = "diffusion", "diffusion/checkpoints"
FILES = ["config.json", "summary.json", *(f"{STAGE}/{name}" for name in ("metrics.jsonl", "done.json", "latents.json"))]
FILES += [f"{SAVED}/1/{name}" for name in ("files.json", "meta/metadata", "_CHECKPOINT_METADATA")]
FILES += [STAGE, SAVED, f"{SAVED}/99", f"{SAVED}/²", f"{SAVED}/1"]
DATA = "diffusion/checkpoints/1/state/manifest.ocdbt"


def damage(run: Path, rng: np.random.Generator) -> None:
    """One or two of a run's own files, or folders, in one of many ways."""
    for _ in range(rng.integers(1, 3)):
        path = run / [*FILES, DATA][rng.integers(len(FILES) + 1)]
        if not path.parent.is_dir():
            continue
        before = path.read_bytes() if path.is_file() else b"{}"
        kind = rng.integers(10)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if kind == 0:
            path.mkdir()
        elif kind == 1:
            path.symlink_to("nowhere")
        elif kind == 2 and path.name != Path(DATA).name:
            os.mkfifo(path)
        elif kind == 3:
            path.write_bytes([b"", b"[" * 10**5, b"1" * 5000, b"\xff\xfe", b"null", b'"a"', b"[]"][rng.integers(7)])
        elif kind == 4:
            path.write_bytes(mutated(before, rng) if before else b"")
        elif kind == 5:
            path.write_text(json.dumps(ODD[rng.integers(len(ODD))]))
        elif kind > 5:
            with contextlib.suppress(ValueError):
                path.write_text("\n".join(json.dumps(altered(json.loads(line), rng)) for line in lines(before)))


def lines(content: bytes) -> list[bytes]:
    """A JSON file is one, a file of lines several."""
    try:
        json.loads(content)
    except ValueError:
        return content.splitlines()
    return [content]


def inputs(program: str, rng: np.random.Generator) -> Iterator[list[str]]:
    """Command lines without the program's name."""
    pick = lambda options: options[rng.integers(len(options))]
    run, odd = "--workdir=damaged", lambda flag: f"--{flag}={pick(TEXTS)}"
    bad = lambda flag: f"--{flag}={pick(OUTPUTS)}"
    quick = ["--label=1", "--num_steps=1", "--out=out"]
    while True:
        yield from {
            "report": [[run], [run], [run], [odd("workdir")], [bad("workdir")]],
            "sample": [
                [run, *quick],
                [run, *quick],
                ["--workdir=run", *quick, bad("out")],
                ["--workdir=run", *quick, bad("save_latents")],
                [odd("workdir"), *quick],
                [odd("pretrained"), "--prompt=a"],
                ["--workdir=run", *quick, odd("init_noise")],
                ["--workdir=run", *quick, odd("lora")],
                ["--workdir=run", odd("prompt"), odd("label"), bad("out")],
                ["--workdir=run", *quick, odd("between"), odd("known")],
            ],
            "evaluate": [
                [f"--videos={CLIPS}", "--metrics=motion_diversity", bad("json")],
                [odd("videos"), "--metrics=motion_diversity"],
                [bad("videos"), "--metrics=motion_diversity"],
                [f"--videos={CLIPS}", odd("metrics")],
                [f"--videos={CLIPS}", "--metrics=psnr", odd("source"), "--frames=1"],
                [f"--videos={CLIPS}", "--metrics=psnr", odd("reference"), "--frames=1"],
                [f"--videos={CLIPS}", "--metrics=frame_consistency", odd("clip"), "--frames=1"],
                [f"--videos={CLIPS}", "--metrics=fvd", odd("i3d"), bad("reference")],
                [f"--videos={CLIPS}", "--metrics=psnr", odd("frames"), odd("height"), odd("width"), bad("json")],
                ["--videos=samples", "--metrics=motion_diversity", bad("json")],
            ],
            "export": [[run, "--out=new"], ["--workdir=run", bad("out")], [run, "--out=new"], [run, odd("format")]],
            "main": [
                [RECIPE, *TRAIN, bad("workdir")],
                [RECIPE, *TRAIN, odd("stage"), "--workdir=w"],
                [f"--config={pick(TEXTS)}"],
                [f"{RECIPE[:-6]}{pick(TEXTS)}"],
                [RECIPE, f"--config.{pick(TEXTS)}={pick(TEXTS)}", "--max_steps=0"],
                [RECIPE, *TRAIN, pick(TEXTS)],
            ],
            "watermark": [[odd("video")], [bad("video")], [odd("video"), bad("video")], []],
            "plan": [[RECIPE, "--simulate", odd("topology")], [RECIPE, "--topology=h100x1", "--simulate", bad("json")]],
        }[program]


def drive(program: str, count: int) -> dict:
    """{"done", "refused", "wrong": [command line and what was said]}"""
    from absl import flags, logging

    from vidjax import cli

    captured = []
    start, cli.start = cli.start, captured.append
    sys.argv = [program]
    runpy.run_module(f"vidjax.{program}", run_name="__main__", alter_sys=True)
    cli.start = start
    logging.use_absl_handler()
    (main,), found = captured, Counter()
    wrong, rng = [], np.random.default_rng(sum(program.encode()) + int(os.environ.get("FUZZ_SEED", "0")))

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, late)
    commands = inputs(program, rng)
    for _ in range(count):
        argv = next(commands)
        for name in ("damaged", "out", "new"):
            shutil.rmtree(name, ignore_errors=True)
        if "--workdir=damaged" in argv:
            shutil.copytree("run", "damaged")
            damage(Path("damaged"), rng)
        flags.FLAGS.unparse_flags()
        for name in list(flags.FLAGS):
            if name.startswith("config."):
                delattr(flags.FLAGS, name)
            else:
                flags.FLAGS[name].unparse()
        said, status, argv = io.StringIO(), 0, [program, *argv]
        signal.alarm(LIMIT)
        faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                cli.run(main, cli.parse(argv))
        except SystemExit as end:
            status = end.code
        except BaseException:
            said.write(traceback.format_exc())
            status = "Traceback"
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        errors = [line for line in said.getvalue().split("\n") if line.startswith("error: ")]
        if status not in (0, 1) or "Traceback" in said.getvalue() or len(errors) != status:
            wrong.append([argv, status, said.getvalue()[-2500:]])
        found["refused" if status else "done"] += 1
    return {**found, "wrong": wrong}


def fork(program: str, work: Callable[[], dict]) -> dict:
    """What `work()` gives in a process of its own."""
    if not (child := os.fork()):
        os.dup2(2, 1)
        made = work()
        Path(f"{program}.found").write_text(json.dumps(made))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        return {"wrong": [[program, status, "it crashed"]]}
    return json.loads(Path(f"{program}.found").read_text())


def train() -> dict:
    from vidjax import cli

    sys.argv = ["main", RECIPE, *TRAIN, "--workdir=run"]
    captured = []
    cli.start = captured.append
    runpy.run_module("vidjax.main", run_name="__main__", alter_sys=True)
    cli.run(captured[0], cli.parse(sys.argv))
    return {}


def run(count: int) -> dict:
    """By program."""
    import vidjax.evaluation.results
    import vidjax.runtime.workdir
    import vidjax.training.loop  # noqa: F401

    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    Path("samples").mkdir()
    Path("samples", "samples.json").write_text("[1")
    shutil.copy(CLIPS / "box.mp4", "samples")
    fork("train", train)
    assert Path("run", "config.json").exists()
    return {p: fork(p, lambda p=p, share=share: drive(p, count * share // 100)) for p, share in SHARES.items()}


if __name__ == "__main__":
    found = run(int(sys.argv[1]))
    print(json.dumps(found))
