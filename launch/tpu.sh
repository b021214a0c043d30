#!/usr/bin/env bash
# A Cloud TPU slice: made, run on by all its workers, watched through preemptions, deleted. Needs gcloud, logged in.
#
#   tpu.sh create NAME --zone=Z --accelerator-type=T --version=V [--queued] [flags of gcloud's, such as --spot]
#   tpu.sh run    NAME --zone=Z [--setup=COMMAND] -- FLAGS     copies this checkout, installs it, starts vidjax.main
#   tpu.sh logs   NAME --zone=Z [--worker=0]
#   tpu.sh watch  NAME, then all of create's and run's         until the run ends; made and started again if preempted
#   tpu.sh delete NAME --zone=Z [--queued]
#
# FLAGS are vidjax.main's; --workdir is gs://BUCKET/FOLDER, or on a file system that all workers share, mounted by
# --setup. --queued waits in line for a slice: give it to create, watch and delete. --dry-run prints the commands;
# watch's are those of one preemption.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run.sh
source "$here/run.sh"

kind=tpu-vm zone='' version='' accelerator='' setup='' worker=0
words=() extra=()
while (($#)); do
  case $1 in
    --) shift && break ;;
    --dry-run) dry_run=yes ;;
    --queued) kind=queued-resources ;;
    --zone=*) zone=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --accelerator-type=*) accelerator=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    -h | --help) usage ;;
    -*) extra+=("$1") ;;
    *) words+=("$1") ;;
  esac
  shift
done
action=${words[0]:-} name=${words[1]:-}
archive=${TMPDIR:-/tmp}/vidjax-$name.tar.gz

create() {
  local command=(gcloud compute tpus "$kind" create "$name" --zone="$zone" --accelerator-type="$accelerator")
  if [[ $kind == tpu-vm ]]; then
    command+=(--version="$version")
  else
    command+=(--node-id="$name" --runtime-version="$version")
  fi
  run "${command[@]}" ${extra[@]+"${extra[@]}"}
}

delete() {
  local command=(gcloud compute tpus "$kind" delete "$name" --zone="$zone" --quiet)
  [[ $kind == tpu-vm ]] || command+=(--force)
  run "${command[@]}"
}

on_worker() { # WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

start() { # FLAGS
  local remote='mkdir -p vidjax && tar -xzf vidjax.tar.gz -C vidjax'
  [[ ! $setup ]] || remote+=" && { $setup; }"
  remote+=" && bash ~/vidjax/launch/tpu_worker.sh start $(quoted "$@")"
  run tar -C "$here/.." --exclude=__pycache__ -czf "$archive" LICENSE README.md pyproject.toml configs launch vidjax &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:vidjax.tar.gz" --zone="$zone" --worker=all &&
    on_worker all "$remote"
}

ask() { # COMMAND...: the last line that it prints, in `answer`; after --dry-run the next line of `rehearsal`
  if [[ $dry_run ]]; then
    "$@"
    answer=${rehearsal[0]} rehearsal=("${rehearsal[@]:1}")
  else
    answer=$("$@") || return
    answer=${answer##*$'\n'}
  fi
}

state() {
  local field=state
  [[ $kind == tpu-vm ]] || field=state.state
  run gcloud compute tpus "$kind" describe "$name" --zone="$zone" --format="value($field)"
}

progress() { # of the run: running, gone, or its exit status
  on_worker 0 'bash ~/vidjax/launch/tpu_worker.sh state 2>/dev/null || echo gone'
}

one_look() { # FLAGS: sees what is there and takes the next step towards a finished run
  if [[ $deleted ]]; then
    create || return
    deleted=
    return
  fi
  ask state || return
  case $answer in
    PREEMPTED | TERMINATED | SUSPENDED)
      echo "$name: $answer, made anew" >&2
      delete || return
      deleted=yes
      return
      ;;
    FAILED) fail 1 "$name: the request for a slice has failed; gcloud compute tpus $kind describe $name says why" ;;
    READY | ACTIVE) ;;
    *)
      echo "$name: $answer" >&2
      return
      ;;
  esac
  ask progress || return
  case $answer in
    running) ;;
    gone) start "$@" || return ;;
    0) finished=yes ;;
    [1-9]*) fail "$answer" "$name: the run has ended with status $answer; $0 logs $name --zone=$zone shows why" ;;
    *) echo "$name: worker 0 says $answer" >&2 ;;
  esac
}

watch() { # FLAGS
  local rehearsal=(PREEMPTED READY gone READY 0) answer='' deleted='' finished='' failures=0 status
  [[ $kind == tpu-vm ]] || rehearsal=(SUSPENDED ACTIVE gone ACTIVE 0)
  until [[ $finished ]]; do
    status=0
    one_look "$@" || status=$?
    if ((status == 0)); then failures=0; else failures=$((failures + 1)); fi
    ((failures < 5)) || fail "$status" "$name: gave up after 5 failures in a row"
    [[ $finished || $dry_run ]] || sleep "${POLL_SECONDS:-60}"
  done
  echo "$name: finished; the slice is still there: $0 delete $name --zone=$zone" >&2
}

[[ $action && $name && ${#words[@]} == 2 ]] || fail 2 "usage: tpu.sh create|run|logs|watch|delete NAME --zone=ZONE ..."
need --zone "$zone"
case $action in
  create | watch)
    need --accelerator-type "$accelerator"
    need --version "$version"
    ;;
  *) ((${#extra[@]} == 0)) || fail 2 "$action has no flag ${extra[0]}; vidjax.main's flags come after --" ;;
esac
case $action in
  create | delete) "$action" ;;
  logs) on_worker "$worker" 'tail -n 100 -F vidjax.log' ;;
  run | watch)
    need_workdir "$@"
    if [[ $action == run ]]; then start "$@"; else watch "$@"; fi
    ;;
  *) fail 2 "$action is not one of create, run, logs, watch, delete" ;;
esac
