#!/usr/bin/env bash
# N processes of attrjax on this machine's CPU, as on a pod of N hosts.
#
#   launch/local_pod.sh N [--devices=1] [--port=12355] [--logs=DIR] -- --config=FILE --workdir=DIR ...
#
#   --devices=D  virtual devices of each process: N x D in all
#   --port=P     of the first process, where the others find it; a second pod at the same time needs another
#   --logs=DIR   where process-1.log and so on go, build/local_pod if not given; the first process writes here
#   --dry_run    print the commands instead
#
# SIGTERM or Ctrl-C is passed on: training saves its step and ends with exit code 42. A second one kills. The
# same command goes on from there (it always says --resume). The exit code is the first bad one of any process,
# upon which the others are ended too; 42 where they saved and stopped; else 0.
#
# It costs nothing but this machine, and leaves nothing behind but DIR. PYTHON names another python than
# .venv/bin/python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

GRACE=${GRACE:-10} # seconds that the others have to end by themselves after one has failed
devices=1 port=12355 logs=build/local_pod
pids=() # of processes that still run, by index

main() {
  [[ ${1-} != --help ]] || { usage; exit; }
  [[ ${1-} =~ ^[1-9][0-9]{0,2}$ ]] || die "the number of processes comes first: launch/local_pod.sh 4 -- ..."
  local count=$1
  options "devices= port= logs=" "${@:2}"
  whole devices port
  for_attrjax
  [[ -n $dry_run ]] || ! port_is_taken || die "port $port is taken: name another one with --port=..."
  run mkdir -p "$logs"
  trap kill_all EXIT
  trap stop TERM INT HUP
  local index
  for ((index = 0; index < count; index++)); do
    start "$index" "$count"
  done
  [[ -n $dry_run ]] || wait_for_all
}

port_is_taken() { (: >"/dev/tcp/localhost/$port") 2>/dev/null; }

# start INDEX COUNT: one process, in the background.
start() {
  local log="$logs/process-$1.log" command=(
    env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices" "${PYTHON:-.venv/bin/python}" -m attrjax.main
    "--coordinator=localhost:$port" "--processes=$2" "--process=$1" --resume "${rest[@]}"
  )
  if [[ -n $dry_run ]]; then
    printf '%s%s &\n' "$(quote "${command[@]}")" "$( (($1)) && printf ' >%s 2>&1' "$(quote "$log")")"
  elif (($1)); then
    "${command[@]}" >"$log" 2>&1 &
  else
    "${command[@]}" &
  fi
  [[ -n $dry_run ]] || pids[$1]=$!
}

told='' # whether a signal was passed on
stop() {
  if [[ -n $told ]]; then
    kill_all
  elif ((${#pids[@]})); then
    say "passing SIGTERM on to ${#pids[@]} processes; once more kills them"
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
  told=1
}

kill_all() { ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true; }

# Wait for all processes and end with their common exit code.
wait_for_all() {
  local code index result=0 deadline=''
  while ((${#pids[@]})); do
    sleep 0.2 || true # Ctrl-C at a terminal ends it, too, and must not end this
    for index in "${!pids[@]}"; do
      ! kill -0 "${pids[index]}" 2>/dev/null || continue
      code=0
      wait "${pids[index]}" || code=$?
      unset "pids[index]"
      if ((code == 42)); then
        ((result)) || result=42
      elif ((code)) && [[ -z $deadline ]]; then
        result=$code deadline=$((SECONDS + GRACE))
        say "process $index of this pod ended with exit code $code"
        ((index == 0)) || tail -n 20 "$logs/process-$index.log" >&2
      fi
    done
    # The others wait for the one that failed in vain.
    [[ -z $deadline ]] || ((SECONDS < deadline)) || kill_all
  done
  exit "$result"
}

main "$@"
