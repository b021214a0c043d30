#!/usr/bin/env bash
# A SLURM job on GPUs, one process a GPU; queued again when it is preempted or its time is up.
#
#   slurm.sh [--dry-run] --nodes=N --gpus=G [flags of sbatch's, such as --time=24:00:00] -- FLAGS
#
# G is the number of GPUs a node, FLAGS are vidjax.main's. Submit from an environment with vidjax[cuda13] in it; that,
# this checkout and --workdir have to be on a file system that all nodes share. JAX takes SLURM's word for who is who.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run.sh
source "$here/run.sh"

nodes='' gpus='' extra=()
while (($#)); do
  case $1 in
    --) shift && break ;;
    --dry-run) dry_run=yes ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    -h | --help) usage ;;
    *) extra+=("$1") ;;
  esac
  shift
done
need --nodes "$nodes"
need --gpus "$gpus"
need_workdir "$@"
# --gpus-per-task would hide a node's other GPUs from each process, and JAX picks its own by SLURM_LOCALID.
run sbatch --job-name=vidjax --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --requeue \
  --open-mode=append --signal=B:USR1@180 ${extra[@]+"${extra[@]}"} "$here/slurm_job.sh" "$@"
