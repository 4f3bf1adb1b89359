# shellcheck shell=bash
# Jobs on hosts, however they are reached: the verbs that tpu.sh, gpu.sh and local.sh share.
#
# The script that sources this file defines
#   know_hosts                  sets NUM_HOSTS, how many there are
#   reach HOST COMMAND          runs a line of shell on a host; status 255 if it cannot be reached
#   send HOST FILE NAME         copies a file to a host's home; `fetch HOST NAME FILE` one from there
#   distributed HOST COUNT      prints NAME=VALUE lines by which the processes of a job find another
# and sets EXTRA, the name of the lock file. Hosts are numbered from 0; they are worked on side by
# side, each line of theirs is labelled, and their exit statuses are combined into one.

DRY_RUN=${DRY_RUN:-0}
JOB=${JOB:-job}
FORCE=${FORCE:-0}
COMMIT=${COMMIT:-}
LOGS=${LOGS:-}
WORKDIR=${WORKDIR:-}
STOP_SECONDS=${STOP_SECONDS:-60}
SSH_TRIES=${SSH_TRIES:-3}
SSH_PAUSE=${SSH_PAUSE:-5}
ROBUSTJAX_POLL=${ROBUSTJAX_POLL:-2}
ENVIRONMENT=()
REST=()

UNREACHABLE=255 # ssh's own status, and gcloud's when ssh fails
PREEMPTED=75    # of robustjax: it saved, and the same command goes on
SECRET='TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE_KEY'

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$(basename "$0"): $*"
  exit 2
}

# For arrays by name and letters made large; macOS still comes with 3.2.
[ "${BASH_VERSINFO[0]}" -ge 4 ] || die "bash $BASH_VERSION is too old: install bash 4.4 or newer"

is_dry() { [ "$DRY_RUN" = 1 ]; }

# Words as a shell reads them: spaces, quotes, dollar signs and newlines stay what they are.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command that changes something, or only shows it.
act() {
  if is_dry; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# Flags are variables in small letters: --tpu-name=X is TPU_NAME=X. What follows -- goes to REST.
# The arguments are the names that are taken, then --, then the flags.
parse_flags() {
  local -a known=()
  local name
  while [ "$1" != -- ]; do
    known+=("$1")
    shift
  done
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --)
        shift
        REST=("$@")
        return
        ;;
      --force) FORCE=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --env=*) ENVIRONMENT+=("${1#--env=}") ;;
      --*=*)
        name=${1%%=*} && name=${name#--} && name=${name//-/_}
        name=${name^^}
        [[ " ${known[*]} " == *" $name "* ]] || die "no flag ${1%%=*}; see --help"
        printf -v "$name" '%s' "${1#*=}"
        ;;
      *) die "$(quoted "$1") is no flag; what robustjax shall do comes after --" ;;
    esac
    shift
  done
}

# need NAME WHAT: a variable that must be set.
need() {
  [ -n "${!1:-}" ] || die "$1 is missing: $2 (export $1=..., or --$(tr '[:upper:]_' '[:lower:]-' <<<"$1")=...)"
}

check_job() {
  [[ $JOB =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "JOB=$(quoted "$JOB"): letters, digits, . _ -"
  local pair name
  for pair in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
    [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env=$(quoted "$pair"): NAME=VALUE is wanted"
    # It would be on command lines, in logs and in state files.
    name=${pair%%=*}
    [[ ! ${name^^} =~ ($SECRET) ]] ||
      die "--env=$name=...: looks like a secret; put it where the worker reads it itself"
  done
}

# The worst of some exit statuses: a failure before a notice of preemption, the first host's first.
combined() {
  local status worst=0
  for status in "$@"; do
    case $status in
      0) ;;
      "$PREEMPTED") [ "$worst" != 0 ] || worst=$status ;;
      *) [ "$worst" != 0 ] && [ "$worst" != "$PREEMPTED" ] || worst=$status ;;
    esac
  done
  echo "$worst"
}

# Sets `verb` to the first argument, one of those that all scripts have; or tells the usage.
take_verb() {
  verb=${1:-}
  case $verb in
    create | setup | run | status | logs | attach | progress | stop | delete) ;;
    -h | --help | help)
      usage
      exit
      ;;
    *)
      usage >&2
      die "no verb ${verb:-given}"
      ;;
  esac
}

# Runs a function for every host, side by side; returns the combined status.
# What a host prints is shown when it is done, with its number before every line.
on_all() {
  local host scratch
  local -a pids=() statuses=()
  scratch=$(mktemp -d)
  for ((host = 0; host < NUM_HOSTS; host++)); do
    if is_dry; then
      "$1" "$host" "${@:2}"
      statuses+=(0)
    else
      ("$1" "$host" "${@:2}") >"$scratch/$host" 2>&1 &
      pids+=($!)
    fi
  done
  for host in "${!pids[@]}"; do
    statuses[host]=0
    wait "${pids[host]}" || statuses[host]=$?
    sed "s/^/[worker $host] /" "$scratch/$host" >&2
    [ "${statuses[host]}" = 0 ] || say "worker $host: status ${statuses[host]}"
  done
  rm -rf "$scratch"
  return "$(combined "${statuses[@]}")"
}

# Tries again what a bad connection ended.
persist() {
  local try status
  for ((try = 1; ; try++)); do
    status=0
    "$@" || status=$?
    [ "$status" = $UNREACHABLE ] && [ "$try" -lt "$SSH_TRIES" ] || return "$status"
    sleep "$SSH_PAUSE"
  done
}

# at HOST WORD...: worker.sh of what was sent last, on a host.
at() {
  local host=$1
  shift
  # shellcheck disable=SC2016 # the variable is the host's
  persist reach "$host" "$(worker_script) $(quoted "$@")"
}

# May be redefined: where worker.sh is on the hosts.
# shellcheck disable=SC2016 # the variable is the host's
worker_script() { printf '%s' 'bash "$HOME/robustjax/current/launch/worker.sh"'; }

# pack FILE: the commit to send as an archive; sets LABEL, what manifests will call it.
pack() {
  local commit changes
  commit=$(git rev-parse --verify --quiet "${COMMIT:-HEAD}^{commit}") || die "COMMIT=$COMMIT: no such commit"
  changes=$(git status --porcelain --untracked-files=no)
  LABEL=$commit
  if [ -z "$COMMIT" ] && [ -n "$changes" ]; then
    [ "$FORCE" = 1 ] ||
      die "there are uncommitted changes: commit them, or --force sends them as $commit-dirty"
    LABEL=$commit-dirty
    commit=$(git stash create)
  fi
  act git archive --format=tar.gz --output="$1" "$commit"
}

# What a host does with an archive. Code that a job may be reading is not touched.
# shellcheck disable=SC2016 # the variables are the host's
UNPACK='set -e; folder=$HOME/robustjax/code/$1
if [ ! -f "$folder/COMMIT" ] || [[ $1 == *-dirty ]]; then
  rm -rf "$folder" && mkdir -p "$folder" && tar -xzf "$HOME/$2" -C "$folder"
  printf "%s\n" "$1" >"$folder/COMMIT"
fi
rm -f "$HOME/$2"; ln -sfn "$folder" "$HOME/robustjax/current"'

setup_host() {
  local archive=robustjax-$LABEL.tar.gz
  persist send "$1" "$2" "$archive" &&
    persist reach "$1" "$(quoted bash -c "$UNPACK" unpack "$LABEL" "$archive")" &&
    at "$1" install "$EXTRA"
}

setup() {
  local scratch status=0
  scratch=$(mktemp -d)
  pack "$scratch/code.tar.gz"
  # The first connection makes keys, which hosts reached at the same time would each make.
  persist reach 0 true && on_all setup_host "$scratch/code.tar.gz" || status=$?
  rm -rf "$scratch"
  [ "$status" = 0 ] || say "setup failed; the same command goes on"
  return "$status"
}

start_host() {
  local -a environment=()
  mapfile -t environment < <(distributed "$1" "$NUM_HOSTS")
  at "$1" start "$JOB" ${environment[@]+"${environment[@]}"} \
    ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} -- "${REST[@]}"
}

run() {
  local status=0
  [ ${#REST[@]} -gt 0 ] || die "what shall robustjax do? $(basename "$0") run -- attack --config=..."
  on_all start_host || status=$?
  # Those that started would wait for those that did not.
  if [ "$status" != 0 ] && [ "$status" != 73 ]; then
    say "job $JOB did not start everywhere; stopping it"
    stop >/dev/null 2>&1 || true
  fi
  return "$status"
}

# Asks every host how the job is: fills STATES, one word or two for each.
ask() {
  local host scratch status
  local -a pids=()
  STATES=()
  scratch=$(mktemp -d)
  for ((host = 0; host < NUM_HOSTS; host++)); do
    at "$host" state "$JOB" >"$scratch/$host" 2>/dev/null &
    pids+=($!)
  done
  for host in "${!pids[@]}"; do
    status=0
    wait "${pids[host]}" || status=$?
    case $status in
      0) STATES[host]=$(tail -n 1 "$scratch/$host" | grep . || echo unreachable) ;;
      127) STATES[host]=none ;; # nothing was set up there yet
      *) STATES[host]=unreachable ;;
    esac
  done
  rm -rf "$scratch"
}

# One word for all hosts, and the status of a job that ended.
summary() {
  local answer
  local -a statuses=()
  local -A seen=()
  for answer in "$@"; do
    seen[${answer%% *}]=1
    [[ $answer != exited* ]] || statuses+=("${answer#exited }")
  done
  local status
  status=$(combined ${statuses[@]+"${statuses[@]}"})
  if [ "$status" != 0 ] && [ "$status" != "$PREEMPTED" ]; then
    echo "failed $status" # the others wait for it, or will end
  elif [ -n "${seen[lost]:-}" ]; then
    echo lost
  elif [ -n "${seen[unreachable]:-}" ] || [ $# = 0 ]; then
    echo unreachable
  elif [ -n "${seen[none]:-}" ]; then
    if [ ${#seen[@]} = 1 ]; then echo none; else echo lost; fi
  elif [ -n "${seen[running]:-}" ]; then
    echo running
  elif [ "$status" = "$PREEMPTED" ]; then
    echo preempted
  else
    echo "done"
  fi
}

# The job on every host and in all; the status is that of a job which ended, else 0.
job_status() {
  if is_dry; then
    on_all at_state
  else
    ask
    tell
  fi
}

tell() {
  local host word
  for host in "${!STATES[@]}"; do
    echo "worker $host: ${STATES[host]}"
  done
  word=$(summary "${STATES[@]}")
  echo "job: $word"
  case $word in
    failed*) return "${word#failed }" ;;
    preempted) return $PREEMPTED ;;
    lost | unreachable) return 1 ;;
  esac
}

fetch_log() { persist fetch "$1" "robustjax/jobs/$JOB/log.txt" "$2/worker-$1.txt"; }

logs() {
  local folder=${LOGS:-runs/logs/$JOB} status=0
  act mkdir -p "$folder"
  on_all fetch_log "$folder" || status=$?
  say "logs are in $folder"
  return "$status"
}

# Worker 0's log as it grows. Ends with the job, and with the combined status of all workers;
# an interrupt ends only the watching.
attach() {
  trap 'say "detached; the job goes on"; exit 130' INT
  at 0 follow "$JOB" || true
  if is_dry; then return; fi
  while ask && [ "$(summary "${STATES[@]}")" = running ]; do sleep "$ROBUSTJAX_POLL"; done
  tell
}

# What has come in a folder that the hosts share.
progress() {
  need WORKDIR "the folder, as the command has it"
  at 0 progress "$WORKDIR"
}

at_state() { at "$1" state "$JOB"; }
stop() { on_all at_stop; }
at_stop() { at "$1" stop "$JOB" "$STOP_SECONDS"; }
