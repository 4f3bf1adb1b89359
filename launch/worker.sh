#!/usr/bin/env bash
# What runs on a host itself: its environment, and jobs that do not end with the terminal.
#
#   worker.sh install tpu|gpu               the environment, from the lock file of that name
#   worker.sh start JOB [NAME=VALUE...] -- COMMAND...    robustjax COMMAND, in the background
#   worker.sh state JOB                     none, running, exited STATUS, or lost (killed; a reboot)
#   worker.sh follow JOB                    its log as it grows; ends as the job does
#   worker.sh progress WORKDIR              what has come in a folder, as launch/progress.py tells it
#   worker.sh stop JOB SECONDS              SIGTERM, so that it saves; after so many seconds SIGKILL
#
# Below $ROBUSTJAX_ROOT: code/COMMIT, venv, and jobs/JOB with command, log.txt, pid and exit_status.
set -euo pipefail

ROOT=${ROBUSTJAX_ROOT:-$HOME/robustjax}
CODE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${ROBUSTJAX_PYTHON:-$ROOT/venv/bin/python}
UV_VERSION=0.13.9
RUNNING_ALREADY=73 # status of start

say() { printf '%s\n' "$*" >&2; }

# Writes a small file whole or not at all.
record() {
  printf '%s\n' "$2" >"$1.tmp"
  mv "$1.tmp" "$1"
}

# The images of TPU VMs have a Python that is older than 3.11, so uv brings one.
install() {
  local lock=$CODE/launch/requirements-$1.txt uv=$HOME/.local/bin/uv
  if [ "$("$uv" --version 2>/dev/null | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    # The variable is for systems whose Python is marked as managed; older pips do not know it.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet "uv==$UV_VERSION"
  fi
  "$uv" venv --quiet --allow-existing --python 3.11 "$ROOT/venv"
  if ! cmp -s "$lock" "$ROOT/venv/lock.txt"; then
    "$uv" pip sync --quiet --python "$PYTHON" "$lock"
  fi
  "$uv" pip install --quiet --python "$PYTHON" --no-deps --editable "$CODE"
  cp "$lock" "$ROOT/venv/lock.txt"
  # Devices are not asked for: on a slice of several hosts that waits for all of them.
  "$PYTHON" -c 'import jax, robustjax; print("jax", jax.__version__)'
}

# When a process began, in ticks since the start of the machine; nothing if it is dead.
began() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  stat=${stat##*) } # what stands before may hold spaces
  [ "${stat%% *}" = Z ] || printf '%s\n' "$stat" | cut -d' ' -f20
}

state() {
  local folder=$ROOT/jobs/$1 pid ticks
  if [ -f "$folder/exit_status" ]; then
    echo "exited $(cat "$folder/exit_status")"
  elif [ ! -f "$folder/pid" ]; then
    echo none
  else
    read -r pid ticks <"$folder/pid"
    if [ "$(began "$pid")" = "$ticks" ]; then echo running; else echo lost; fi
  fi
}

start() {
  local job=$1 folder=$ROOT/jobs/$1
  shift
  mkdir -p "$folder"
  exec 9>"$folder/lock" # one start at a time
  flock 9
  if [ "$(state "$job")" = running ]; then
    say "job $job is running already: stop it first, or give --job=ANOTHER"
    return $RUNNING_ALREADY
  fi
  rm -f "$folder/exit_status" "$folder/pid"
  printf '%q ' "$@" >"$folder/command"
  setsid nohup bash "${BASH_SOURCE[0]}" work "$folder" "$@" </dev/null >>"$folder/log.txt" 2>&1 9>&- &
  for _ in {1..100}; do
    [ ! -f "$folder/pid" ] || return 0
    sleep 0.1
  done
  say "job $job did not start: see $folder/log.txt"
  return 1
}

# The detached process: runs a job and writes how it ended.
work() {
  local folder=$1 status=0
  shift
  # A signal to the group is for the job; this process stays. A handler, because what is ignored
  # would be ignored by the job too.
  trap : TERM
  record "$folder/pid" "$$ $(began $$)"
  cd "$CODE"
  if [ -f COMMIT ]; then
    ROBUSTJAX_COMMIT=$(cat COMMIT)
    export ROBUSTJAX_COMMIT
  fi
  while [ "$1" != -- ]; do
    export "${1?}"
    shift
  done
  shift
  export PYTHONUNBUFFERED=1
  "$PYTHON" -m robustjax "$@" || status=$?
  record "$folder/exit_status" "$status"
}

follow() {
  local folder=$ROOT/jobs/$1 tail_pid answer
  [ -f "$folder/log.txt" ] || { say "no job $1 here" && return 1; }
  tail -n +1 -F "$folder/log.txt" 2>/dev/null &
  tail_pid=$!
  # shellcheck disable=SC2064 # the process of now
  trap "kill $tail_pid 2>/dev/null || true" EXIT
  while answer=$(state "$1") && [ "$answer" = running ]; do sleep "${ROBUSTJAX_POLL:-2}"; done
  sleep 0.5 # tail shows the rest
  case $answer in
    exited*) return "${answer#exited }" ;;
    *) say "job $1: $answer" && return 1 ;;
  esac
}

progress() {
  cd "$CODE" # where jobs run
  "$PYTHON" -m launch.progress "$1"
}

stop() {
  local folder=$ROOT/jobs/$1 seconds=$2 pid
  [ "$(state "$1")" = running ] || return 0
  read -r pid _ <"$folder/pid"
  kill -TERM -- "-$pid"
  for ((tenths = 0; tenths < 10 * seconds; tenths++)); do
    [ "$(state "$1")" = running ] || return 0
    sleep 0.1
  done
  kill -KILL -- "-$pid" 2>/dev/null || true
  [ -f "$folder/exit_status" ] || record "$folder/exit_status" 137
}

case ${1:-} in
  install | state | start | work | follow | progress | stop) "$@" ;;
  *)
    say "worker.sh: no verb ${1:-}"
    exit 2
    ;;
esac
