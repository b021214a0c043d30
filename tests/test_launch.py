"""The launchers, with stand-ins for gcloud, xpk, kubectl, sbatch, srun, uv, python that note how they are called."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# What a shell, JSON, YAML or Kubernetes might take for its own.
FLAGS = (
    "--config=configs/lvdm.py:sky",
    "--config.prompt=a man is skiing",
    """--config.data.path=/x y/{class}/*.mp4;"$HOME" 'it''s' `id` \\n & $(NAME) $$ é #""",
    "--config.note=two\nlines\tand ${NAME}",
    "--workdir=/runs/sky",
)

# Each call is a record, each word a field. `answers` holds what the next call to be answered prints; a call that has
# $FAILING in it fails. With $REMOTE, the home folder of a worker, ssh and scp do what they are asked to.
STUB = r"""#!/usr/bin/env bash
set -u
{ printf '%s\037' "${0##*/}" "$@"; printf '\036'; } >>"$RECORDS/calls"
all="${0##*/} $*"
[[ -z ${FAILING:-} || $all != *$FAILING* ]] || { echo "stub: no" >&2; exit 7; }
case $all in
  "kubectl apply -f -") cat >"$RECORDS/stdin" ;;
  *" describe "* | *" ssh "*"tpu_worker.sh state"*)
    [[ -s $RECORDS/answers ]] || exit 9
    head -n 1 "$RECORDS/answers"; sed -i 1d "$RECORDS/answers" ;;
  *" ssh "*) [[ -z ${REMOTE:-} ]] || { cd "$REMOTE" && HOME=$REMOTE bash -c "${all#*--command=}"; } ;;
  *" scp "*) [[ -z ${REMOTE:-} ]] || cp "$5" "$REMOTE/vidjax.tar.gz" ;;
  "uv venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  srun*) eval "${SRUN:-}" ;;
  *vidjax.main*)
    [[ -s $RECORDS/statuses ]] || exit 0
    status=$(head -n 1 "$RECORDS/statuses"); sed -i 1d "$RECORDS/statuses"; exit "$status" ;;
esac
"""


class Desk:
    """A PATH on which nothing real can be started but a shell's tools, and the calls that were made."""

    def __init__(self, folder: Path):
        self.folder, tools = folder, folder / "bin"
        tools.mkdir()
        for name in ("gcloud", "xpk", "kubectl", "sbatch", "srun", "scontrol", "uv", "python"):
            (tools / name).write_text(STUB)
            (tools / name).chmod(0o755)
        self.env = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LC_ALL": "C.UTF-8",
            "RECORDS": str(folder),
            "POLL_SECONDS": "0",
            "QUICK_SECONDS": "0",
        }

    def answers(self, *lines: str) -> None:
        (self.folder / "answers").write_text("".join(line + "\n" for line in lines))

    def statuses(self, *lines: int) -> None:
        (self.folder / "statuses").write_text("".join(f"{line}\n" for line in lines))

    def start(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(LAUNCH / words[0]), *words[1:]]
        return self.shell(command, **env)

    def shell(self, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**self.env, **env}, cwd=self.folder, capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list[list[str]]:
        """Since the last time that they were asked for."""
        path = self.folder / "calls"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return [record.removesuffix("\x1f").split("\x1f") for record in text.split("\x1e")[:-1]]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


SLICE = ("--zone=us-east5-a", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot")
TPU_VM = ["gcloud", "compute", "tpus", "tpu-vm"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
ZONE = "--zone=us-east5-a"
PLAIN = ("--image=here/v:1", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--hosts=4", "--chips=4")
LINES = {
    "create": ("tpu.sh", "create", "sky", *SLICE),
    "create queued": ("tpu.sh", "create", "sky", *SLICE, "--queued"),
    "run": ("tpu.sh", "run", "sky", ZONE, "--", *FLAGS),
    "run in a bucket": ("tpu.sh", "run", "sky", ZONE, "--", FLAGS[0], "--workdir=gs://bucket/sky"),
    "logs": ("tpu.sh", "logs", "sky", ZONE),
    "watch": ("tpu.sh", "watch", "sky", *SLICE, "--", *FLAGS),
    "watch queued": ("tpu.sh", "watch", "sky", *SLICE, "--queued", "--", *FLAGS),
    "delete": ("tpu.sh", "delete", "sky", ZONE),
    "delete queued": ("tpu.sh", "delete", "sky", ZONE, "--queued"),
    "slurm": ("slurm.sh", "--nodes=2", "--gpus=8", "--time=24:00:00", "--", *FLAGS),
    "slurm job": ("slurm_job.sh", *FLAGS),
    "gpu": ("gpu.sh", "--", *FLAGS),
    "xpk": ("gke.sh", "xpk", "sky", "--image=i", "--cluster=c", "--tpu-type=v5litepod-16", "--zone=z", "--", *FLAGS),
    "plain": ("gke.sh", "plain", "sky", *PLAIN, "--claim=runs", "--", *FLAGS),
}
ONE_PREEMPTION = {
    "watch": ("PREEMPTED", "READY", "gone", "READY", "0"),
    "watch queued": ("SUSPENDED", "ACTIVE", "gone", "ACTIVE", "0"),
}


@pytest.mark.parametrize("name", LINES)
def test_dry_run_starts_nothing_and_prints_what_would_be_started(desk, name):
    script, *words = LINES[name]
    desk.answers(*ONE_PREEMPTION.get(name, ()))
    done = desk.start(script, *words)
    assert done.returncode == 0, done.stderr
    real = desk.calls()
    assert real

    dry = desk.start(script, "--dry-run", *words)
    assert dry.returncode == 0, dry.stderr
    assert desk.calls() == []

    desk.answers(*ONE_PREEMPTION.get(name, ()))
    desk.shell(["bash", "-euo", "pipefail", "-c", dry.stdout])
    assert desk.calls() == real  # what was printed, given to a shell, is what was done


def test_a_slice_is_created_and_deleted(desk):
    desk.start(*LINES["create"])
    desk.start(*LINES["create queued"])
    desk.start(*LINES["delete"])
    desk.start(*LINES["delete queued"])
    common = [ZONE, "--accelerator-type=v5litepod-16"]
    assert desk.calls() == [
        [*TPU_VM, "create", "sky", *common, "--version=v2-alpha-tpuv5-lite", "--spot"],
        [*QUEUED, "create", "sky", *common, "--node-id=sky", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"],
        [*TPU_VM, "delete", "sky", ZONE, "--quiet"],
        [*QUEUED, "delete", "sky", ZONE, "--quiet", "--force"],
    ]


def test_flags_reach_the_program_on_a_worker_as_they_were_written(desk):
    home = desk.folder / "worker"
    home.mkdir()
    done = desk.start(*LINES["run"][:4], "--setup=touch mounted; cd /", *LINES["run"][4:], REMOTE=str(home))
    assert done.returncode == 0, done.stderr
    status = home / "vidjax.exit"
    deadline = time.monotonic() + 20
    while not status.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    calls = desk.calls()
    assert ["python", "-m", "vidjax.main", "--distributed", *FLAGS] in calls
    assert [words[:4] for words in calls if words[0] == "gcloud"] == [TPU_VM, TPU_VM]
    assert all("--worker=all" in words for words in calls if words[0] == "gcloud")
    assert (home / "mounted").exists()
    for file in ("vidjax/main.py", "configs/lvdm.py", "pyproject.toml", "README.md", "LICENSE"):
        assert (home / "vidjax" / file).exists()
    state = desk.shell(["bash", str(home / "vidjax/launch/tpu_worker.sh"), "state"], HOME=str(home))
    assert state.stdout == "0\n"


def test_a_worker_says_how_its_run_is_and_starts_it_in_place_of_an_earlier_one(desk):
    # In a copy: start writes its environment beside the launchers.
    copy = desk.folder / "vidjax" / "launch"
    copy.mkdir(parents=True)
    for script in SCRIPTS:
        (copy / script.name).write_text(script.read_text())
    worker = ["bash", str(copy / "tpu_worker.sh")]
    assert desk.shell([*worker, "state"]).stdout == "gone\n"
    earlier = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (desk.folder / "vidjax.pid").write_text(str(earlier.pid))
    threading.Thread(target=earlier.wait).start()  # or it would be there still, as a zombie
    assert desk.shell([*worker, "state"]).stdout == "running\n"
    dry = desk.shell([*worker, "--dry-run", "start", *FLAGS])
    words = desk.shell(["bash", "-c", f"printf '%s\\037' {dry.stdout.splitlines()[-1]}"]).stdout.split("\x1f")[:-1]
    assert words == [".venv/bin/python", "-m", "vidjax.main", "--distributed", *FLAGS]
    assert desk.shell([*worker, "state"]).stdout == "running\n" and desk.calls() == []
    desk.statuses(7)
    assert desk.shell([*worker, "start", *FLAGS]).returncode == 0
    assert earlier.wait(20) == -signal.SIGTERM
    deadline = time.monotonic() + 20
    while not (desk.folder / "vidjax.exit").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert desk.shell([*worker, "state"]).stdout == "7\n"


def verbs(calls: list[list[str]]) -> list[str]:
    """create, describe, delete, scp; ssh to worker 0 is a look at the run, to all its start."""
    names = {"--worker=0": "look", "--worker=all": "start"}
    return [next((names[w] for w in call if w in names), call[4]) if call[4] == "ssh" else call[4] for call in calls]


@pytest.mark.parametrize("name", ONE_PREEMPTION)
def test_a_preempted_slice_is_made_again_and_the_run_started_again(desk, name):
    desk.answers(*ONE_PREEMPTION[name])
    done = desk.start(*LINES[name])
    assert done.returncode == 0, done.stderr
    calls = desk.calls()
    steps = ["describe", "delete", "create", "describe", "look", "scp", "start", "describe", "look"]
    assert verbs(calls) == steps
    desk.start(*LINES["create queued" if "queued" in name else "create"])
    assert calls[2] == desk.calls()[0]
    desk.start(*LINES["run"])
    assert calls[5:7] == desk.calls()


def test_a_run_that_goes_on_is_left_alone(desk):
    desk.answers("CREATING", "READY", "running", "REPAIRING", "READY", "running", "READY", "0")
    done = desk.start(*LINES["watch"])
    assert done.returncode == 0, done.stderr
    assert set(verbs(desk.calls())) == {"describe", "look"}


def test_a_run_that_fails_ends_the_watch_with_its_status(desk):
    desk.answers("READY", "3")
    done = desk.start(*LINES["watch"])
    assert done.returncode == 3
    assert "ended with status 3" in done.stderr and len(done.stderr.splitlines()) == 1
    assert verbs(desk.calls()) == ["describe", "look"]


def test_a_request_that_failed_ends_the_watch(desk):
    desk.answers("FAILED")
    done = desk.start(*LINES["watch queued"])
    assert done.returncode == 1 and "failed" in done.stderr


def test_a_watch_outlives_some_failures_in_a_row_but_not_many(desk):
    desk.answers("PREEMPTED")
    done = desk.start(*LINES["watch"], FAILING=" create ")
    assert done.returncode == 7
    assert verbs(desk.calls()) == ["describe", "delete", *["create"] * 5]
    desk.answers()  # describe fails
    assert desk.start(*LINES["watch"]).returncode == 9
    assert verbs(desk.calls()) == ["describe"] * 5


def test_slurm_starts_one_process_a_gpu(desk):
    desk.start(*LINES["slurm"])
    desk.start(*LINES["slurm job"], SLURM_CPUS_PER_TASK="12")
    submitted, step = desk.calls()
    assert submitted[:5] == ["sbatch", "--job-name=vidjax", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"]
    assert "--requeue" in submitted and "--time=24:00:00" in submitted
    assert submitted[-len(FLAGS) - 1 :] == [str(LAUNCH / "slurm_job.sh"), *FLAGS]
    options = ["--kill-on-bad-exit=1", "--cpus-per-task=12"]
    assert step == ["srun", *options, "python", "-m", "vidjax.main", "--distributed", *FLAGS]


def test_the_processes_of_a_slurm_step_find_each_other():
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    program = (
        "import jax; from vidjax.runtime import cluster\n"
        "with cluster.join(): print(jax.process_index(), jax.process_count(), flush=True)"
    )
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    jax = {"JAX_COORDINATOR_PORT": port, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(LAUNCH.parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **slurm, **jax, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert said == ["0 2", "1 2"]


def test_a_slurm_step_that_fails_is_the_job_s_failure(desk):
    assert desk.start(*LINES["slurm job"], SRUN="exit 5").returncode == 5
    assert [call[0] for call in desk.calls()] == ["srun"]


def test_a_slurm_job_whose_time_is_up_stops_its_step_and_goes_back_in_line(desk):
    ready = desk.folder / "ready"
    step = f"trap 'touch {desk.folder}/stopped; exit 143' TERM; touch {ready}; while :; do sleep 0.02; done"
    job = subprocess.Popen(
        [LAUNCH / "slurm_job.sh", *FLAGS], env={**desk.env, "SRUN": step, "SLURM_JOB_ID": "42"}, cwd=desk.folder
    )
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) != 0
    assert (desk.folder / "stopped").exists()  # the step was waited for
    assert desk.calls()[-1] == ["scontrol", "requeue", "42"]


def test_one_gpu_is_started_again_after_failures_of_a_bounded_number(desk):
    main = ["python", "-m", "vidjax.main", *FLAGS]
    desk.statuses(137, 1, 0)
    assert desk.start(*LINES["gpu"]).returncode == 0
    install, *runs = desk.calls()
    assert install[:4] == ["python", "-m", "pip", "install"] and runs == [main] * 3
    desk.statuses(*[137] * 9)
    assert desk.start("gpu.sh", "--restarts=2", "--", *FLAGS).returncode == 137
    assert desk.calls()[1:] == [main] * 3
    desk.statuses(1, 0)
    assert desk.start(*LINES["gpu"], QUICK_SECONDS="60").returncode == 1  # bad input, most likely
    assert desk.calls()[1:] == [main]


def test_xpk_s_command_is_that_of_the_program(desk):
    desk.start(*LINES["xpk"])
    (call,) = desk.calls()
    assert call[:6] == ["xpk", "workload", "create", "--workload=sky", "--cluster=c", "--tpu-type=v5litepod-16"]
    assert "--docker-image=i" in call and "--zone=z" in call
    command = call[-1].removeprefix("--command=")
    desk.shell(["bash", "-c", command])  # as xpk's pods do
    assert desk.calls() == [["python", "-m", "vidjax.main", "--distributed", *FLAGS]]


def kubernetes_expands(word: str) -> str:
    """$(NAME) of variables that are not set stays, $$ becomes $ (the API's reference, Container.args)."""
    return re.sub(r"\$\$|\$\(", lambda found: "$" if found[0] == "$$" else found[0], word)


TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
# JobSet's own fields, after its API reference for v1alpha2: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2
JOBSET = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "suspend": {"type": "boolean"},
                "ttlSecondsAfterFinished": COUNT,
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": COUNT,
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["action", "name"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": TEXT,
                                    "action": {
                                        "enum": [
                                            "FailJobSet",
                                            "RestartJobSet",
                                            "RestartJobSetAndIgnoreMaxRestarts",
                                            "RestartJob",
                                            "RestartJobAndIgnoreMaxRestarts",
                                        ]
                                    },
                                    "onJobFailureReasons": {
                                        "type": "array",
                                        "items": {
                                            "enum": [
                                                "BackoffLimitExceeded",
                                                "DeadlineExceeded",
                                                "FailedIndexes",
                                                "MaxFailedIndexesExceeded",
                                                "PodFailurePolicy",
                                            ]
                                        },
                                    },
                                    "targetReplicatedJobs": {"type": "array", "items": TEXT},
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "template"],
                        "additionalProperties": False,
                        "properties": {"name": TEXT, "replicas": COUNT, "template": {"type": "object"}},
                    },
                },
            },
        },
    },
}


def test_the_manifest_fits_its_schema_and_carries_the_flags(desk):
    desk.start(*LINES["plain"])
    assert desk.calls() == [["kubectl", "apply", "-f", "-"]]
    manifest = yaml.safe_load((desk.folder / "stdin").read_text())
    jsonschema.validate(manifest, JOBSET)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}
    kubernetes_validate.validate(job, "1.33", strict=True)

    spec = job["spec"]
    assert spec["parallelism"] == spec["completions"] == 4 and spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert [*map(kubernetes_expands, container["args"])] == [*FLAGS]
    assert container["command"] == ["python", "-m", "vidjax.main", "--distributed"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert manifest["metadata"]["name"] == "sky" and container["image"] == "here/v:1"


def test_the_schema_refuses_what_kubernetes_would(desk):
    desk.start(*LINES["plain"])
    manifest = yaml.safe_load((desk.folder / "stdin").read_text())
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, JOBSET)


@pytest.mark.parametrize("name", [name for name in LINES if not name.startswith(("watch", "slurm job"))])
def test_a_command_that_fails_is_one_line_and_its_own_status(desk, name):
    tool = {"slurm": "sbatch", "gpu": "pip", "xpk": "xpk", "plain": "kubectl"}.get(name, "gcloud")
    done = desk.start(*LINES[name], FAILING=tool)
    assert done.returncode == 7
    first, *rest = done.stderr.splitlines()
    assert first == "stub: no"  # the command's own words
    assert len(rest) == 1 and rest[0].startswith("error: status 7 from: ") and tool in shlex.split(rest[0])[4:8]


@pytest.mark.parametrize(
    "line, says",
    [
        ("tpu.sh", "usage"),
        ("tpu.sh create", "usage"),
        ("tpu.sh create sky", "--zone"),
        ("tpu.sh create sky --zone=z", "--accelerator-type"),
        ("tpu.sh create sky --zone=z --accelerator-type=v4-8", "--version"),
        ("tpu.sh logs sky --zone=z --spot", "--spot"),
        ("tpu.sh destroy sky --zone=z", "destroy"),
        ("tpu.sh run sky --zone=z", "nothing to run"),
        ("tpu.sh run sky --zone=z -- --config=configs/lvdm.py", "--workdir"),
        ("tpu.sh run sky --zone=z -- --config=configs/lvdm.py --workdir=s3://bucket/run", "mount it on every machine"),
        ("tpu_worker.sh", "usage"),
        ("slurm.sh", "--nodes"),
        ("slurm.sh --nodes=1", "--gpus"),
        ("slurm.sh --nodes=1 --gpus=1", "nothing to run"),
        ("gpu.sh", "nothing to run"),
        ("gpu.sh --config=configs/lvdm.py", "--config=configs/lvdm.py"),
        ("gpu.sh --restarts=x -- --config=configs/lvdm.py", "--restarts=x"),
        ("gke.sh plain", "usage"),
        ("gke.sh plain Sky", "Sky"),
        ("gke.sh plain sky", "--image"),
        ("gke.sh plain sky --image=i --accelerator=a --topology=t --claim=c --hosts=x", "--hosts=x"),
        ("gke.sh xpk sky --image=i", "--cluster"),
        ("gke.sh helm sky --image=i", "helm"),
    ],
)
def test_a_missing_or_wrong_argument_is_one_line(desk, line, says):
    done = desk.start(*line.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert done.stdout == "" and desk.calls() == []


def test_help_is_the_head_of_the_script(desk):
    for script in ("tpu.sh", "slurm.sh", "gpu.sh", "gke.sh"):
        done = desk.start(script, "--help")
        assert done.returncode == 0 and "FLAGS are vidjax.main's" in done.stdout and "set -e" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    done = subprocess.run(
        [
            Path(sysconfig.get_path("scripts"), "shellcheck"),
            "--external-sources",
            "--source-path=SCRIPTDIR",
            "--severity=style",
            script,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout
    assert script.name == "run.sh" or os.access(script, os.X_OK)
