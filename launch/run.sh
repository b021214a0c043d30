# shellcheck shell=bash
# Sourced by the launchers: `run` executes a command, or after --dry-run prints it, quoted for a shell.
dry_run=

fail() { # STATUS MESSAGE
  echo "error: $2" >&2
  exit "$1"
}

usage() { # the comment at the head of the script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
}

quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

run() { # a failure is one line more on stderr; its status is the caller's
  if [[ $dry_run ]]; then
    quoted "$@"
    return
  fi
  local status=0
  "$@" || status=$?
  ((status == 0)) || echo "error: status $status from: $(quoted "$@")" >&2
  return "$status"
}

need() { # --FLAG VALUE
  [[ $2 ]] || fail 2 "$1 is missing; $(basename "$0") --help shows what is needed"
}

need_flags() { # vidjax.main's
  (($#)) || fail 2 "nothing to run: write vidjax.main's flags after --, such as -- --config=configs/lvdm.py"
}

need_workdir() { # vidjax.main's flags; several machines, and one attempt after the other, write to one folder
  need_flags "$@"
  local flag
  for flag; do
    case $flag in
      --workdir=gs://?*/?*) return ;;
      --workdir=*://*) fail 2 "$flag is no folder and no gs://BUCKET/FOLDER: mount it on every machine and name the mount" ;;
      --workdir | --workdir=?*) return ;;
    esac
  done
  fail 2 "--workdir is missing after --: name a folder on a file system that all machines share, or gs://BUCKET/FOLDER"
}
