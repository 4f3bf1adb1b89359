#!/usr/bin/env bash
# Jobs on this machine, detached from the terminal: what tpu.sh does, without a slice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'END'
usage: launch/local.sh VERB [--flag=value...] [-- COMMAND of robustjax]

Verbs as launch/tpu.sh; create, setup and delete have nothing to do.

Flags, or variables of the same name in capitals:
  --processes    how many run the command together (1)
  --port         a free port, by which they find one another (8476)
  --root         folder of jobs and their logs (runs/local)
  --python       the Python that robustjax is installed in (.venv/bin/python)
  --job --env --logs --workdir --dry-run    as launch/tpu.sh
END
}

# shellcheck source=launch/hosts.sh
source launch/hosts.sh

PROCESSES=${PROCESSES:-1}
PORT=${PORT:-8476}
ROOT=${ROOT:-runs/local}
PYTHON=${PYTHON:-.venv/bin/python}

know_hosts() { NUM_HOSTS=$PROCESSES; }

# Each process has a folder of its own, as if it were a host.
place() { printf '%s' "$ROOT/process-$1"; }

reach() {
  act env ROBUSTJAX_ROOT="$(place "$1")" ROBUSTJAX_PYTHON="$PYTHON" bash -c "$2"
}
worker_script() { quoted bash "$PWD/launch/worker.sh"; }
fetch() { act cp "$(place "$1")/${2#robustjax/}" "$3"; }

distributed() {
  [ "$2" -le 1 ] || printf '%s\n' "JAX_COORDINATOR_ADDRESS=127.0.0.1:$PORT" \
    "JAX_NUM_PROCESSES=$2" "JAX_PROCESS_ID=$1"
}

create() { :; }
setup() { :; }
delete() { :; }

status() {
  echo "slice: ACTIVE"
  job_status
}

take_verb "$@"
shift
parse_flags PROCESSES PORT ROOT PYTHON JOB LOGS WORKDIR -- "$@"
[[ $ROOT == /* ]] || ROOT=$PWD/$ROOT
[[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON
check_job
know_hosts
"$verb"
