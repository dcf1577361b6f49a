#!/usr/bin/env bash
# A Cloud TPU slice of one host or many: made, set up, used, deleted.
#
#   launch/tpu_vm.sh create --name=NAME --zone=ZONE --type=v5litepod-16 [--spot | --reserved]
#                           [--queued [--valid_until=6h]] [--runtime=IMAGE]
#   launch/tpu_vm.sh setup  --name=NAME --zone=ZONE [--bucket=BUCKET] [--copy=DIR]
#   launch/tpu_vm.sh run    --name=NAME --zone=ZONE -- --config=FILE --workdir=runs/RUN ...
#   launch/tpu_vm.sh status --name=NAME --zone=ZONE [--queued]
#   launch/tpu_vm.sh logs   --name=NAME --zone=ZONE [--worker=0] [--follow]
#   launch/tpu_vm.sh stop   --name=NAME --zone=ZONE
#   launch/tpu_vm.sh delete --name=NAME --zone=ZONE [--queued]
#
#   create  asks for the slice; --queued waits in line for it, as a queued resource, for --valid_until at most
#   setup   copies the last commit and what it needs to all hosts, and --copy, a file or directory in this one
#           that is in no commit; mounts the bucket as runs/, which several hosts and spot slices need. What runs
#           there is stopped first
#   run     starts attrjax on all hosts, or goes on with what was stopped; it outlives the connection
#   status  the slice's state (ABSENT if there is none, LOST if only its queued resource is left, which
#           `delete --queued` removes), then each host's
#   stop    SIGTERM: training saves its step and ends with exit code 42; the slice stays and costs
#   delete  the slice; a bucket stays
#
# --project=PROJECT names another project than gcloud's own. --dry_run prints the commands instead.
# A slice costs from READY until it is deleted, whether it is used or not: launch/README.md says how much.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

name='' zone='' project='' type='' runtime='' spot='' reserved='' queued='' valid_until='' bucket='' copy=''
worker=0 follow=''

main() {
  [[ ${1-} != --help ]] || { usage; exit; }
  options "name= zone= project= type= runtime= spot reserved queued valid_until= bucket= copy= worker= follow" "${@:2}"
  need name zone
  named name
  where=("--zone=$zone" ${project:+"--project=$project"})
  [[ ${1-} == run ]] || ((${#rest[@]} == 0)) || die "${rest[0]} belongs to no option"
  case ${1-} in
    create) create ;;
    setup) setup ;;
    run) start ;;
    status) status ;;
    logs) ssh_to "$worker" "$(quote attrjax/launch/worker.sh logs ${follow:+--follow})" ;;
    stop) ssh_to all "attrjax/launch/worker.sh stop" ;;
    delete) delete ;;
    *) die "what shall it do? launch/tpu_vm.sh {create,setup,run,status,logs,stop,delete}" ;;
  esac
}

create() {
  need type
  [[ -z $spot || -z $reserved ]] || die "--spot and --reserved exclude each other"
  [[ -z $valid_until || -n $queued ]] || die "--valid_until is of --queued"
  [[ -n $runtime ]] || runtime=$(runtime_of "$type")
  local price=(${spot:+--spot} ${reserved:+--reserved})
  if [[ -n $queued ]]; then
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
      --accelerator-type="$type" --runtime-version="$runtime" "${price[@]}" \
      ${valid_until:+"--valid-until-duration=$valid_until"}
  else
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
      --accelerator-type="$type" --version="$runtime" "${price[@]}"
  fi
}

# The machine image of a generation: https://cloud.google.com/tpu/docs/runtimes
runtime_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "--type=$1 is of no generation that is known here (v2- to v6e-): name its image with --runtime=..." ;;
  esac
}

setup() {
  # In a directory of the slice's own: several slices may be set up at the same time.
  local archive=build/$name/attrjax.tar.gz worker_setup=(attrjax/launch/worker.sh setup ${bucket:+"--bucket=$bucket"})
  [[ -z $copy || ($copy != /* && $copy != *..*) ]] || die "--copy=$copy must be a path inside this directory"
  [[ -n $bucket ]] || say "note: without --bucket, runs/ is each host's own disk: it ends with the slice, and" \
    "only a slice of one host can train"
  [[ -n $dry_run || -z $(git status --porcelain --untracked-files=no) ]] ||
    say "note: the last commit is copied, without the changes since"
  run mkdir -p "build/$name"
  run git archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}" --worker=all
  ssh_to all "mkdir -p attrjax && tar -xzf attrjax.tar.gz -C attrjax && $(quote "${worker_setup[@]}")"
  [[ -z $copy ]] || copy_to_all
}

copy_to_all() {
  local parent
  parent=attrjax/$(dirname "$copy")
  parent=${parent%/.}
  ssh_to all "$(quote mkdir -p "$parent")"
  run gcloud compute tpus tpu-vm scp --recurse "$copy" "$name:$parent" "${where[@]}" --worker=all
}

start() {
  for_attrjax
  ssh_to all "$(quote attrjax/launch/worker.sh start -- "${rest[@]}")"
}

# The state of the slice, then a line "attrjax: STATE" for each host, which launch/babysit.sh reads.
status() {
  local kind=tpu-vm format='value(state)' state
  [[ -z $queued ]] || kind=queued-resources format='value(state.state)'
  if [[ -n $dry_run ]]; then
    run gcloud compute tpus "$kind" describe "$name" "${where[@]}" --format="$format"
    ask_hosts
    return
  fi
  state=$(describe "$kind" "$format")
  # A queued resource is ACTIVE once its slice is there: from then on that has a state of its own.
  if [[ $state == ACTIVE ]]; then
    state=$(describe tpu-vm 'value(state)')
    [[ $state != ABSENT ]] || state=LOST # of the same name there can be no other before this one is deleted
  fi
  printf '%s\n' "$state"
  [[ $state != READY ]] || ask_hosts || echo "attrjax: unreachable"
}

# describe KIND FORMAT: its state, or ABSENT. Any other failure of gcloud is none of the slice: it is one here.
describe() {
  local errors state
  errors=$(mktemp)
  if state=$(gcloud compute tpus "$1" describe "$name" "${where[@]}" --format="$2" 2>"$errors"); then
    printf '%s\n' "${state:-UNKNOWN}"
  elif grep -q NOT_FOUND "$errors"; then
    echo ABSENT
  else
    cat "$errors" >&2
    rm -f "$errors"
    return 1
  fi
  rm -f "$errors"
}

ask_hosts() {
  ssh_to all 'if [ -x attrjax/launch/worker.sh ]; then attrjax/launch/worker.sh state; else echo "attrjax: absent"; fi'
}

delete() {
  local kind=tpu-vm force=''
  [[ -z $queued ]] || kind=queued-resources force=--force # with its slice
  if [[ -z $dry_run && $(describe "$kind" 'value(name)') == ABSENT ]]; then
    say "there is no $name in $zone: nothing to delete"
  else
    run gcloud compute tpus "$kind" delete "$name" "${where[@]}" ${force:+"$force"} --quiet
  fi
}

# ssh_to WORKER COMMAND: a command in the hosts' shell.
ssh_to() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

main "$@"
