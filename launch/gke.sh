#!/usr/bin/env bash
# A JobSet on one TPU slice of a GKE cluster, through kubectl or through xpk; restarted when it is preempted or fails.
#
#   gke.sh [--dry-run] plain NAME --image=I --accelerator=A --topology=T --hosts=H --chips=C --claim=P -- FLAGS
#   gke.sh [--dry-run] xpk   NAME --image=I --cluster=C --tpu-type=T [flags of xpk's, such as --zone=Z] -- FLAGS
#
# Both take --restarts=10, for failures that are no preemption (xpk counts both), and the image `tpu` of
# docker/Dockerfile. FLAGS are vidjax.main's. plain fills in jobset.yaml: A and T are the node pool's labels
# gke-tpu-accelerator and gke-tpu-topology, H its machines, C the chips of each; P is a PersistentVolumeClaim
# that all can write to, mounted at /runs, so --workdir=/runs/NAME. xpk mounts what its --storage names. Afterwards:
# kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME, kubectl delete jobset NAME, xpk workload delete.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run.sh
source "$here/run.sh"

image='' accelerator='' topology='' hosts='' chips='' claim='' cluster='' tpu_type='' restarts=10
words=() extra=()
while (($#)); do
  case $1 in
    --) shift && break ;;
    --dry-run) dry_run=yes ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --tpu-type=*) tpu_type=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    -h | --help) usage ;;
    -*) extra+=("$1") ;;
    *) words+=("$1") ;;
  esac
  shift
done
action=${words[0]:-} name=${words[1]:-}

json() { # each word as a JSON string, which is a YAML one too
  local word
  for word; do
    word=${word//\\/\\\\} word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
    printf '"%s"\n' "$word"
  done
}

number() { # --FLAG VALUE
  [[ $2 =~ ^[0-9]+$ ]] || fail 2 "$1=$2 is not a number"
}

manifest() { # FLAGS: jobset.yaml filled in
  local text key value flags
  text=$(<"$here/jobset.yaml")
  flags=$(json "${@//\$/\$\$}") # Kubernetes would expand $(NAME), and takes $$ for $
  flags=[${flags//$'\n'/, }]
  while IFS='=' read -r key value; do
    text=${text//"\${$key}"/"$value"}
  done <<END
NAME=$(json "$name")
IMAGE=$(json "$image")
ACCELERATOR=$(json "$accelerator")
TOPOLOGY=$(json "$topology")
CLAIM=$(json "$claim")
HOSTS=$hosts
CHIPS=$chips
RESTARTS=$restarts
FLAGS=$flags
END
  echo "$text"
}

[[ $action && $name && ${#words[@]} == 2 ]] || fail 2 "usage: gke.sh plain|xpk NAME --image=IMAGE ... -- FLAGS"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail 2 "$name is no name: lower-case letters, digits and -"
need --image "$image"
number --restarts "$restarts"
case $action in
  plain)
    ((${#extra[@]} == 0)) || fail 2 "plain has no flag ${extra[0]}; vidjax.main's flags come after --"
    need --accelerator "$accelerator"
    need --topology "$topology"
    need --claim "$claim"
    number --hosts "$hosts"
    number --chips "$chips"
    need_workdir "$@"
    if [[ $dry_run ]]; then
      printf "kubectl apply -f - <<'END'\n%s\nEND\n" "$(manifest "$@")"
    else
      manifest "$@" | run kubectl apply -f -
    fi
    ;;
  xpk)
    need --cluster "$cluster"
    need --tpu-type "$tpu_type"
    need_workdir "$@"
    run xpk workload create --workload="$name" --cluster="$cluster" --tpu-type="$tpu_type" --docker-image="$image" \
      --max-restarts="$restarts" --termination-grace-period-seconds=180 ${extra[@]+"${extra[@]}"} \
      --command="$(quoted python -m vidjax.main --distributed "$@")"
    ;;
  *) fail 2 "$action is not one of plain, xpk" ;;
esac
