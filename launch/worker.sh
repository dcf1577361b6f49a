#!/usr/bin/env bash
# What one host of a TPU slice does; launch/tpu_vm.sh runs it there, on all hosts alike.
#
#   launch/worker.sh setup [--bucket=BUCKET]  a virtual environment with jax for TPUs; runs/ is the bucket. What
#                                             runs here is stopped first
#   launch/worker.sh start -- ARGUMENTS       attrjax in the background: it outlives the connection
#   launch/worker.sh state                    "attrjax: absent", "ready", "running" or "exited CODE"
#   launch/worker.sh logs [--follow]          what it printed
#   launch/worker.sh stop                     SIGTERM, by which training saves its step, and wait for the end
#
# --dry_run prints the commands instead. It costs nothing by itself: the host does, while it is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

PLACE=build/worker                # pid of the supervisor; code of what has ended; log; bucket, written by setup
STOP_SECONDS=${STOP_SECONDS:-600} # how long a save may take before the run is killed
bucket='' follow=''

main() {
  [[ ${1-} != --help ]] || { usage; exit; }
  options "bucket= follow" "${@:2}"
  case ${1-} in
    setup) setup ;;
    start) start ;;
    state) printf 'attrjax: %s\n' "$(state)" ;;
    logs) run tail -n 200 ${follow:+-F} "$PLACE/log" ;;
    stop) stop ;;
    supervise) supervise ;;
    *) die "what shall it do? launch/worker.sh {setup,start,state,logs,stop}" ;;
  esac
}

# uv brings a Python, since that of the machine images is older than 3.11.
setup() {
  end_run # a run whose environment is taken away could not save its step
  run python3 -m pip install --quiet --user uv
  run python3 -m uv venv --quiet --clear --seed --python 3.12 .venv
  run .venv/bin/python -m pip install --quiet -c constraints.txt setuptools
  run .venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[tpu]'
  run mkdir -p runs "$PLACE"
  if [[ -n $bucket ]]; then
    if [[ -n $dry_run ]] || ! command -v gcsfuse >/dev/null; then run sudo apt-get install --yes gcsfuse; fi
    if [[ -n $dry_run ]] || ! mountpoint -q runs; then run gcsfuse --implicit-dirs "$bucket" runs; fi
  fi
  [[ -n $dry_run ]] || printf '%s' "$bucket" >"$PLACE/bucket"
}

state() {
  if [[ ! -e $PLACE/bucket ]] || { [[ -s $PLACE/bucket ]] && ! mountpoint -q runs; }; then
    echo absent # never set up, or the bucket is gone: the host was started again
  elif [[ -e $PLACE/code ]]; then
    echo "exited $(<"$PLACE/code")"
  elif [[ ! -e $PLACE/pid ]]; then
    echo ready
  elif is_running; then
    echo running
  else
    echo exited 137 # it was killed with its supervisor
  fi
}

# A number alone is no proof: after a restart of the host it may be another program's.
is_running() {
  [[ -e $PLACE/pid && $(ps -ww -o args= -p "$(<"$PLACE/pid")" 2>/dev/null) == *worker.sh\ supervise* ]]
}

start() {
  for_attrjax
  if [[ -n $dry_run ]]; then
    run .venv/bin/python -m attrjax.main --coordinator=auto --resume "${rest[@]}"
    return
  fi
  local before
  before=$(state)
  [[ $before != absent ]] || die "this host is not set up: launch/tpu_vm.sh setup"
  [[ $before != running ]] || die "attrjax runs here already: launch/tpu_vm.sh stop ends it"
  rm -f "$PLACE/code"
  setsid launch/worker.sh supervise -- "${rest[@]}" </dev/null >>"$PLACE/log" 2>&1 &
  echo "$!" >"$PLACE/pid"
}

# Run attrjax, pass SIGTERM on, and leave its exit code behind.
supervise() {
  local pid='' code=0
  trap '[[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || true' TERM
  "${PYTHON:-.venv/bin/python}" -m attrjax.main --coordinator=auto --resume "${rest[@]}" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do sleep 0.5; done
  wait "$pid" || code=$?
  echo "$code" >"$PLACE/code.new"
  mv "$PLACE/code.new" "$PLACE/code"
}

stop() {
  end_run
  printf 'attrjax: %s\n' "$(state)"
}

# A run whose bucket is gone is one too, though the host's state is then "absent".
end_run() {
  local pid deadline=$((SECONDS + STOP_SECONDS))
  if is_running; then
    pid=$(<"$PLACE/pid")
    run kill -TERM "$pid" || true # it may have ended just now
    while [[ -z $dry_run ]] && is_running; do
      if ((SECONDS >= deadline)); then
        say "it has not ended after $STOP_SECONDS seconds: it is killed"
        kill -KILL -- "-$pid" || true # the supervisor leads a process group of its own
      fi
      sleep 1
    done
  fi
}

main "$@"
