#!/usr/bin/env bash
# Jobs on one or more GPU hosts that are reached by ssh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'END'
usage: HOSTS="user@first user@second" launch/gpu.sh VERB [--flag=value...] [-- COMMAND of robustjax]

  setup    sends the current commit to all hosts, and makes their environment
  run      starts robustjax COMMAND on all hosts, detached from this terminal
  status   how the job is on every host
  logs     copies every host's log here
  attach   shows the log of the first host until the job ends
  progress counts what has come in the --workdir of a job
  stop     asks the job to save and end
  create, delete   do nothing: the hosts are yours

Flags, or variables of the same name in capitals:
  --hosts          as ssh takes them, with blanks between; needed
  --coordinator    address of the first host as the others see it (default: its name), and
  --port           a free port there, by which the processes find one another (8476)
  --ssh-options    for ssh and scp, such as "-i KEY -o User=me"
  --job --env --commit --force --logs --workdir --dry-run    as launch/tpu.sh
END
}

# shellcheck source=launch/hosts.sh
source launch/hosts.sh

HOSTS=${HOSTS:-}
COORDINATOR=${COORDINATOR:-}
PORT=${PORT:-8476}
SSH_OPTIONS=${SSH_OPTIONS:-}
# shellcheck disable=SC2034 # of hosts.sh
EXTRA=gpu

know_hosts() { NUM_HOSTS=${#addresses[@]}; }

reach() { act ssh "${options[@]}" "${addresses[$1]}" "$2"; }
send() { act scp "${options[@]}" "$2" "${addresses[$1]}:$3"; }
fetch() { act scp "${options[@]}" "${addresses[$1]}:$2" "$3"; }

distributed() {
  [ "$2" -le 1 ] || printf '%s\n' "JAX_COORDINATOR_ADDRESS=$COORDINATOR:$PORT" \
    "JAX_NUM_PROCESSES=$2" "JAX_PROCESS_ID=$1"
}

create() { say "the hosts are there already"; }
delete() { say "the hosts are yours; nothing to give back"; }

status() {
  echo "slice: ACTIVE"
  job_status
}

take_verb "$@"
shift
parse_flags HOSTS COORDINATOR PORT SSH_OPTIONS JOB COMMIT LOGS WORKDIR -- "$@"
need HOSTS "the hosts, as ssh takes them"
read -ra addresses <<<"$HOSTS"
read -ra options <<<"-o BatchMode=yes $SSH_OPTIONS"
first=${addresses[0]#*@}
COORDINATOR=${COORDINATOR:-$first}
check_job
know_hosts
"$verb"
