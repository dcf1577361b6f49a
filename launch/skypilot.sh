#!/usr/bin/env bash
# attrjax on any cloud, through SkyPilot (pip install 'skypilot[gcp]' or another cloud's name).
#
#   launch/skypilot.sh run    --name=NAME --bucket=BUCKET [--gpus=H100:1] [--nodes=1] [--infra=gcp/us-central1]
#                             [--on_demand] -- --config=FILE --workdir=runs/RUN ...
#   launch/skypilot.sh status
#   launch/skypilot.sh logs | stop --name=NAME
#
#   run     a managed job of launch/skypilot.yaml, on spot machines unless --on_demand; --gpus also takes TPUs, such
#           as tpu-v6e-8. It comes back by itself after a preemption. BUCKET is made where there is none
#   stop    ends the job and its machines at once: `run` goes on from the newest checkpoint that was saved before
#
# --dry_run prints the commands instead. A job costs while its machines are there, which end with it. The machine
# that manages all jobs stops by itself, and goes with `sky down`: launch/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

name='' bucket='' gpus=H100:1 nodes=1 infra='' on_demand=''

main() {
  [[ ${1-} != --help ]] || { usage; exit; }
  options "name= bucket= gpus= nodes= infra= on_demand" "${@:2}"
  whole nodes
  [[ ${1-} == run ]] || ((${#rest[@]} == 0)) || die "${rest[0]} belongs to no option"
  case ${1-} in
    run) launch ;;
    status) run sky jobs queue --refresh ;;
    logs) need name && run sky jobs logs --name="$name" ;;
    stop) need name && run sky jobs cancel --name="$name" --yes ;;
    *) die "what shall it do? launch/skypilot.sh {run,status,logs,stop}" ;;
  esac
}

launch() {
  need name bucket
  named name
  for_attrjax
  local extra=cuda
  [[ $gpus != tpu-* ]] || extra=tpu
  run sky jobs launch --name="$name" --gpus="$gpus" --num-nodes="$nodes" ${infra:+"--infra=$infra"} \
    "$([[ -n $on_demand ]] && echo --no-use-spot || echo --use-spot)" --env="BUCKET=$bucket" --env="EXTRA=$extra" \
    --env="ATTRJAX_ARGUMENTS=$(quote "${rest[@]}")" --detach-run --yes launch/skypilot.yaml
}

main "$@"
