#!/usr/bin/env bash
# One GPU of this machine: installs vidjax, runs vidjax.main, starts it again after a failure.
#
#   gpu.sh [--dry-run] [--restarts=3] -- FLAGS
#
# FLAGS are vidjax.main's. The GPU is the first, or CUDA_VISIBLE_DEVICES. A run that fails within a minute is not
# started again: it would fail alike.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run.sh
source "$here/run.sh"

restarts=3
while (($#)); do
  case $1 in
    --) shift && break ;;
    --dry-run) dry_run=yes ;;
    --restarts=*) restarts=${1#*=} ;;
    -h | --help) usage ;;
    *) fail 2 "$1 is not --dry-run or --restarts=N; vidjax.main's flags come after --" ;;
  esac
  shift
done
need_flags "$@"
[[ $restarts =~ ^[0-9]+$ ]] || fail 2 "--restarts=$restarts is not a number"

run python -m pip install --quiet -e "$here/..[cuda13]"
while :; do
  began=$SECONDS status=0
  run env CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" python -m vidjax.main "$@" || status=$?
  ((status && restarts > 0 && SECONDS - began >= ${QUICK_SECONDS:-60})) || exit "$status"
  restarts=$((restarts - 1))
  echo "started again, $restarts times left" >&2
done
