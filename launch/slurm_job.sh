#!/usr/bin/env bash
# What slurm.sh submits: vidjax.main in every task. SIGUSR1, before the time is up, becomes SIGTERM and a place in line.
#
#   slurm_job.sh [--dry-run] FLAGS
set -euo pipefail
# sbatch runs a copy of this file from elsewhere, so it sources nothing.
command=(srun --kill-on-bad-exit=1)
[[ ! ${SLURM_CPUS_PER_TASK:-} ]] || command+=(--cpus-per-task="$SLURM_CPUS_PER_TASK") # srun does not take sbatch's
command+=(python -m vidjax.main --distributed)
if [[ ${1:-} == --dry-run ]]; then
  printf '%q ' "${command[@]}" "${@:2}"
  echo
  exit
fi

warned=
trap 'warned=yes; kill -TERM "$step" 2>/dev/null || true' USR1
"${command[@]}" "$@" &
step=$!
status=0
wait "$step" || status=$?
if [[ $warned ]]; then
  wait "$step" || true # the first one was cut short by the signal
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
