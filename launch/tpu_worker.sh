#!/usr/bin/env bash
# What tpu.sh has each worker of a slice do; vidjax.log, vidjax.pid and vidjax.exit are left in the home folder.
#
#   tpu_worker.sh start FLAGS   installs vidjax and starts vidjax.main in the background, in place of an earlier one
#   tpu_worker.sh state         running, gone, or the exit status
#
# --dry-run, as the first word, prints the commands.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run.sh
source "$here/run.sh"
if [[ ${1:-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
action=${1:-}
cd "$here/.."
export PATH=$HOME/.local/bin:$PATH # where uv installs itself

alive() { [[ -f ~/vidjax.pid ]] && kill -0 "$(<~/vidjax.pid)" 2>/dev/null; }

case $action in
  start)
    shift
    if alive; then
      group=-$(<~/vidjax.pid)
      run kill -- "$group"
      for ((waited = 0; waited < 120; waited++)); do # it may be saving
        if [[ $dry_run ]] || ! kill -0 -- "$group" 2>/dev/null; then break; fi
        sleep 1
      done
    fi
    run rm -f ~/vidjax.exit ~/vidjax.pid
    # The images' own Python may be older than vidjax's oldest.
    command -v uv >/dev/null || run bash -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
    run uv venv --quiet --allow-existing --python=3.12 .venv
    run uv pip install --quiet --python=.venv -e '.[tpu]'
    if [[ $dry_run ]]; then
      quoted .venv/bin/python -m vidjax.main --distributed "$@"
      exit
    fi
    setsid nohup bash "$here/tpu_worker.sh" main "$@" >~/vidjax.log 2>&1 </dev/null &
    echo $! >~/vidjax.pid
    ;;
  main) # what start leaves behind
    shift
    status=0
    .venv/bin/python -m vidjax.main --distributed "$@" || status=$?
    echo "$status" >~/vidjax.exit
    ;;
  state) if [[ -f ~/vidjax.exit ]]; then cat ~/vidjax.exit; elif alive; then echo running; else echo gone; fi ;;
  -h | --help) usage ;;
  *) fail 2 "usage: tpu_worker.sh start FLAGS | state" ;;
esac
