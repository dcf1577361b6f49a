#!/usr/bin/env bash
# Keeps a run going on a TPU slice until it is done: makes the slice where there is none, makes it anew where
# it was preempted, and starts attrjax again where it was stopped. Leave it running on a machine that stays.
#
#   launch/babysit.sh --name=NAME --zone=ZONE --type=v5litepod-16 [--spot | --reserved] [--queued] --bucket=BUCKET
#                     [--every=60] [--max_creates=100] [--max_failures=3] [--delete_when_done]
#                     -- --config=FILE --workdir=runs/RUN ...
#
#   --every         seconds between two looks
#   --max_creates   how often it may ask for a slice in all: also where there is none to be had
#   --max_failures  how often the set-up or attrjax may fail and is tried again
#   the others      as in launch/tpu_vm.sh
#
# It looks at the slice, and then at the exit code of every host: 0 on all ends it; 42 is a run that saved
# itself and goes on; 2, on any host, is a user's mistake, which trying again does not mend; others are failures,
# which may be of the moment and are tried again. Where gcloud does not answer it waits, and makes nothing. Its own
# exit code is 0 where the run is done, else attrjax's, or 1. Ctrl-C ends it alone: the run goes on. --dry_run
# prints the commands of each case.
#
# It costs what the slice costs, which it leaves there at the end, unless --delete_when_done is given.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

PATIENCE=10 # looks in a row without an answer before something is done about it
name='' zone='' project='' type='' runtime='' spot='' reserved='' queued='' valid_until='' bucket='' copy=''
every=60 max_creates=100 max_failures=3 delete_when_done=''
creates=0 failures=0 waiting=''
silent=0 deaf=0 # looks in a row that gcloud, and that a host, did not answer
where=()

main() {
  options "name= zone= project= type= runtime= spot reserved queued valid_until= bucket= copy= \
    every= max_creates= max_failures= delete_when_done" "$@"
  need name zone type
  whole every max_creates max_failures
  for_attrjax
  [[ -n $bucket ]] || die "--bucket is missing: without one, what a run has saved ends with its slice"
  where=("--name=$name" "--zone=$zone" ${project:+"--project=$project"})
  [[ -z $dry_run ]] || { show; exit; }
  (show >/dev/null) # a mistake is told now, and is not taken for a slice that is not to be had
  trap leave INT TERM
  while true; do
    look
    sleep "$every" &
    waiting=$!
    wait "$waiting" || true # which a signal ends at once
    waiting=''
  done
}

leave() {
  [[ -z $waiting ]] || kill "$waiting" 2>/dev/null || true # it may have ended just now
  say "babysitting ends here. The run goes on, and costs: launch/tpu_vm.sh stop, delete"
  exit 130
}

status() { launch/tpu_vm.sh status "${where[@]}" ${queued:+--queued}; }
create() {
  launch/tpu_vm.sh create "${where[@]}" "--type=$type" ${spot:+--spot} ${reserved:+--reserved} ${queued:+--queued} \
    ${valid_until:+"--valid_until=$valid_until"} ${runtime:+"--runtime=$runtime"}
}
setup() { launch/tpu_vm.sh setup "${where[@]}" "--bucket=$bucket" ${copy:+"--copy=$copy"}; }
start() { launch/tpu_vm.sh run "${where[@]}" -- "${rest[@]}"; }
stop() { launch/tpu_vm.sh stop "${where[@]}"; }
delete() { launch/tpu_vm.sh delete "${where[@]}" ${queued:+--queued}; }

show() {
  export DRY_RUN=1
  # One command a line: within `a && b` a mistake that ends `a` would not end this.
  echo "# at every look:"
  status
  echo "# there is no slice:"
  create
  echo "# it was preempted, or has failed:"
  delete
  create
  echo "# a host is not set up:"
  setup
  start
  echo "# attrjax saved its step and ended with exit code 42:"
  start
  echo "# attrjax failed on a host:"
  stop
  start
  echo "# it is done:"
  if [[ -n $delete_when_done ]]; then delete; fi
}

# One look, and what follows from it.
look() {
  local report
  if ! report=$(status); then
    ((++silent < PATIENCE)) ||
      end 1 "gcloud does not answer: look at what it says above, and at the slice, which may cost"
    return 0
  fi
  silent=0
  local state=${report%%$'\n'*}
  [[ $state == READY ]] || deaf=0
  case $state in
    READY) look_at_hosts "$report" ;;
    ABSENT) make ;;
    PREEMPTED | SUSPENDED | FAILED | TERMINATED | STOPPED | LOST) renew "it is $state" ;;
    *) say "$(date +%T) $name is $state: waiting" ;; # CREATING, WAITING_FOR_RESOURCES, ...
  esac
}

look_at_hosts() {
  local states bad
  states=$(sed -n 's/^attrjax: //p' <<<"$1" | sort -u)
  bad=$(sed -n 's/^exited //p' <<<"$states" | grep -vx -e 0 -e 42 | head -n 1 || true)
  if [[ $states == *unreachable* || -z $states ]]; then
    ((++deaf < PATIENCE)) || renew "its hosts do not answer"
    return
  fi
  deaf=0
  if grep -qx 'exited 2' <<<"$states"; then
    end 2 "attrjax ended with a user's mistake: launch/tpu_vm.sh logs shows it. The slice stays, and costs"
  elif [[ -n $bad ]]; then
    fail "$bad" "attrjax ended with exit code $bad on a host"
    if ! stop || ! start; then fail 1 "it could not be started again"; fi
  elif [[ $states == *absent* ]]; then
    say "$(date +%T) setting up"
    if ! setup || ! start; then fail 1 "the set-up failed"; fi
  elif [[ $states == *running* ]]; then
    say "$(date +%T) running"
  elif [[ $states == "exited 0" ]]; then
    if [[ -n $delete_when_done ]]; then delete; fi
    end 0 "the run is done${delete_when_done:+ and the slice deleted}"
  else
    say "$(date +%T) starting" # it is ready, or has saved itself on some hosts or on all
    start || fail 1 "it could not be started"
  fi
}

make() {
  ((++creates <= max_creates)) || end 1 "$max_creates slices were asked for (--max_creates): there is no slice"
  say "$(date +%T) asking for a slice, the ${creates}. of at most $max_creates"
  deaf=0
  create || say "$(date +%T) there is none to be had now"
}

renew() {
  say "$(date +%T) $1"
  if delete; then make; else fail 1 "it could not be deleted"; fi
}

# fail CODE REASON: once more, or the end.
fail() {
  say "$(date +%T) $2 (failure $((++failures)) of at most $max_failures)"
  ((failures <= max_failures)) || end "$1" "it failed more often than --max_failures: if there is a slice, it costs"
}

end() {
  say "$2"
  exit "$1"
}

main "$@"
