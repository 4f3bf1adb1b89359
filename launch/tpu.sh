#!/usr/bin/env bash
# Jobs on a slice of Cloud TPU, of one host or many, through queued resources.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'END'
usage: launch/tpu.sh VERB [--flag=value...] [-- COMMAND of robustjax]

  create   asks for a slice and waits until it is there
  setup    sends the current commit to all workers, and makes their environment
  run      starts robustjax COMMAND on all workers, detached from this terminal
             launch/tpu.sh run -- attack --config=configs/attack.py:attack=gcg --workdir=gs://...
  status   how the slice is, and the job on every worker
  logs     copies every worker's log here
  attach   shows the log of worker 0 until the job ends
  progress counts what has come in the --workdir of a job that worker 0 sees
  stop     asks the job to save and end
  delete   gives the slice back: nothing is billed any more

Flags, or variables of the same name in capitals (--tpu-name=X is TPU_NAME=X):
  --project --zone --tpu-name    where and what; all three are needed
  --tpu-type         such as v5litepod-8 or v4-32; for create
  --capacity         on-demand (default), spot, reserved; --spot and --reserved for short
  --runtime-version  image of the workers; the one for the type by default
  --valid-until      how long the request may wait in the queue, such as 6h
  --wait=0           create does not wait until the slice is there
  --network --subnetwork --service-account --labels    as gcloud takes them
  --internal-ip=1    workers have no external address: reach them from inside the network
  --job              name of the job (default: job); several may follow another on one slice
  --env=NAME=VALUE   for the job; may be repeated; no secrets
  --commit           what setup sends (default: the current commit; --force: with changes)
  --logs             folder for logs (default: runs/logs/JOB)
  --workdir          for progress: a folder that all workers see
  --dry-run, DRY_RUN=1    shows every command and runs none, as if there were --workers=N (1)
END
}

# shellcheck source=launch/hosts.sh
source launch/hosts.sh

PROJECT=${PROJECT:-}
ZONE=${ZONE:-}
TPU_NAME=${TPU_NAME:-}
TPU_TYPE=${TPU_TYPE:-}
CAPACITY=${CAPACITY:-on-demand}
RUNTIME_VERSION=${RUNTIME_VERSION:-}
VALID_UNTIL=${VALID_UNTIL:-}
WAIT=${WAIT:-1}
NETWORK=${NETWORK:-}
SUBNETWORK=${SUBNETWORK:-}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}
LABELS=${LABELS:-}
INTERNAL_IP=${INTERNAL_IP:-}
WORKERS=${WORKERS:-1}
POLL_SECONDS=${POLL_SECONDS:-20}
# shellcheck disable=SC2034 # of hosts.sh
EXTRA=tpu

# tpus GROUP VERB...: gcloud in our project and zone, asking nothing back.
tpus() { act gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet; }

# The flag of ssh and scp where workers have no external address.
inside() { [ -z "$INTERNAL_IP" ] || printf '%s' --internal-ip; }

reach() {
  # shellcheck disable=SC2046 # no word, or one
  tpus tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2" $(inside)
}

send() {
  # shellcheck disable=SC2046 # no word, or one
  tpus tpu-vm scp "$2" "$TPU_NAME:$3" --worker="$1" $(inside)
}

fetch() {
  # shellcheck disable=SC2046 # no word, or one
  tpus tpu-vm scp "$TPU_NAME:$2" "$3" --worker="$1" $(inside)
}

know_hosts() {
  NUM_HOSTS=$WORKERS
  is_dry || NUM_HOSTS=$(tpus tpu-vm describe "$TPU_NAME" --format='value(networkEndpoints.len())') ||
    die "no slice $TPU_NAME in $ZONE of $PROJECT: launch/tpu.sh create"
  [[ $NUM_HOSTS =~ ^[1-9][0-9]*$ ]] || die "gcloud does not tell how many workers $TPU_NAME has: $NUM_HOSTS"
}

# On a slice JAX finds the other hosts by itself, but never guesses that there are any.
distributed() { [ "$2" -le 1 ] || echo ROBUSTJAX_DISTRIBUTED=1; }

# The image for each generation: https://cloud.google.com/tpu/docs/runtimes
image() {
  case $TPU_TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "TPU_TYPE=$TPU_TYPE: which --runtime-version? (gcloud compute tpus tpu-vm versions list)" ;;
  esac
}

# One word: ABSENT, a state of the queued resource, or PREEMPTED when only its node tells.
slice_state() {
  local state node error
  error=$(mktemp)
  if ! state=$(tpus queued-resources describe "$TPU_NAME" --format='value(state.state)' 2>"$error"); then
    if grep -q NOT_FOUND "$error"; then
      echo ABSENT
    else
      cat "$error" >&2
      rm -f "$error"
      return 1
    fi
  elif [ "$state" = ACTIVE ]; then
    node=$(tpus tpu-vm describe "$TPU_NAME" --format='value(state)' 2>"$error") || node=
    case $node in
      PREEMPTED | TERMINATED | DELETING) echo PREEMPTED ;;
      *) echo ACTIVE ;;
    esac
  else
    echo "${state:-UNKNOWN}"
  fi
  rm -f "$error"
}

create() {
  need TPU_TYPE "the slice to ask for, such as v5litepod-8"
  local -a request=(--node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE")
  local state version
  version=${RUNTIME_VERSION:-$(image)}
  request+=(--runtime-version="$version" --async)
  case $CAPACITY in
    on-demand) ;;
    spot | reserved) request+=("--$CAPACITY") ;;
    *) die "CAPACITY=$CAPACITY: on-demand, spot or reserved" ;;
  esac
  [ -z "$VALID_UNTIL" ] || request+=(--valid-until-duration="$VALID_UNTIL")
  [ -z "$NETWORK" ] || request+=(--network="$NETWORK")
  [ -z "$SUBNETWORK" ] || request+=(--subnetwork="$SUBNETWORK")
  [ -z "$SERVICE_ACCOUNT" ] || request+=(--service-account="$SERVICE_ACCOUNT")
  [ -z "$LABELS" ] || request+=(--labels="$LABELS")
  [ -z "$INTERNAL_IP" ] || request+=(--internal-ips)
  is_dry || state=$(slice_state)
  if is_dry || [ "$state" = ABSENT ]; then
    # A request that was made a moment ago may not have been seen.
    tpus queued-resources create "$TPU_NAME" "${request[@]}" || [ "$(slice_state)" != ABSENT ] || {
      say "the request was refused; if it is a quota, see launch/README.md"
      return 1
    }
  fi
  is_dry || [ "$WAIT" = 0 ] || await
}

# Waits until the slice is there, or never will be.
await() {
  local state before=
  while state=$(slice_state); do
    [ "$state" = "$before" ] || say "slice $TPU_NAME: $state"
    before=$state
    case $state in
      ACTIVE) return 0 ;;
      ABSENT | FAILED | SUSPENDING | SUSPENDED | DELETING | PREEMPTED)
        tpus queued-resources describe "$TPU_NAME" --format='value(state)' >&2 || true
        say "slice $TPU_NAME is $state: delete it (launch/tpu.sh delete) and create it again"
        return 1
        ;;
    esac
    sleep "$POLL_SECONDS"
  done
  return 1
}

status() {
  local state
  if is_dry; then
    tpus queued-resources describe "$TPU_NAME" --format='value(state.state)'
  else
    state=$(slice_state) || return 1
    echo "slice: $state"
    [ "$state" = ACTIVE ] || return 0
  fi
  know_hosts
  job_status
}

delete() {
  if ! is_dry && [ "$(slice_state)" = ABSENT ]; then
    say "slice $TPU_NAME: there is none"
    return
  fi
  # --force: the nodes too, and also one that is not there yet.
  tpus queued-resources delete "$TPU_NAME" --force
}

take_verb "$@"
shift
flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --spot | --reserved) flags+=("--capacity=${1#--}") ;;
    *) flags+=("$1") ;;
  esac
  shift
done
parse_flags PROJECT ZONE TPU_NAME TPU_TYPE CAPACITY RUNTIME_VERSION VALID_UNTIL WAIT NETWORK \
  SUBNETWORK SERVICE_ACCOUNT LABELS INTERNAL_IP JOB COMMIT LOGS WORKDIR WORKERS -- ${flags[@]+"${flags[@]}"} "$@"
need PROJECT "the Google Cloud project that is billed"
need ZONE "the zone of the slice (gcloud compute tpus locations list)"
need TPU_NAME "a name for the slice"
[[ $TPU_NAME =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  die "TPU_NAME=$(quoted "$TPU_NAME"): small letters, digits and -, from a letter on, at most 63"
check_job
case $verb in setup | run | logs | attach | stop) know_hosts ;; esac
"$verb"
