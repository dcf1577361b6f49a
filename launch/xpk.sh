#!/usr/bin/env bash
# TPU slices of Google Kubernetes Engine, through XPK (pip install xpk) or with kubectl alone.
#
#   launch/xpk.sh cluster --cluster=CLUSTER --zone=ZONE --project=PROJECT --type=v5litepod-16 [--slices=1] [--spot]
#                         --bucket=BUCKET
#   launch/xpk.sh image   --image=IMAGE
#   launch/xpk.sh run     --cluster=CLUSTER --zone=ZONE --project=PROJECT --type=v5litepod-16 [--slices=1]
#                         --name=NAME --image=IMAGE -- --config=FILE --workdir=runs/RUN ...
#   launch/xpk.sh apply   --name=NAME --image=IMAGE --type=v5litepod-16 [--slices=1] [--spot] --bucket=BUCKET
#                         [--service_account=default] -- --config=FILE --workdir=runs/RUN ...
#   launch/xpk.sh status | logs [--follow] | stop --name=NAME
#   launch/xpk.sh delete  --cluster=CLUSTER --zone=ZONE --project=PROJECT
#
#   cluster  makes a cluster with slices, and mounts the bucket as runs/ in whatever it runs
#   image    builds launch/Dockerfile from this directory and pushes it where the cluster can read it
#   run      a run, through XPK and its queue: it starts again by itself after a preemption, exit code 42 or 1, but
#            not after a user's mistake, 2
#   apply    the same without XPK: launch/jobset.yaml, filled in, to the cluster that kubectl is pointed at
#   stop     SIGTERM: training saves its step; `run` or `apply` goes on. --grace=300 seconds, set by these two,
#            is what it has for that; --max_restarts=100 is how often it starts again
#   delete   the cluster with its slices; the bucket stays
#
# --dry_run prints the commands instead. A cluster costs from `cluster` to `delete`, whether it is used or not:
# launch/README.md says how much.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

name='' cluster='' zone='' project='' type='' slices=1 spot='' bucket='' image='' service_account=default
max_restarts=100 grace=300 follow=''
accelerator='' topology='' hosts='' chips='' # of one slice, by its type

main() {
  [[ ${1-} != --help ]] || { usage; exit; }
  options "name= cluster= zone= project= type= slices= spot bucket= image= service_account= max_restarts= grace= \
    follow" "${@:2}"
  whole slices max_restarts grace
  [[ -z $name ]] || named name
  [[ ${1-} == run || ${1-} == apply ]] || ((${#rest[@]} == 0)) || die "${rest[0]} belongs to no option"
  case ${1-} in
    cluster) cluster ;;
    image) image ;;
    run) through_xpk ;;
    apply) apply ;;
    status) status ;;
    logs) logs ;;
    stop) stop ;;
    delete) delete ;;
    *) die "what shall it do? launch/xpk.sh {cluster,image,run,apply,status,logs,stop,delete}" ;;
  esac
}

where() {
  need cluster zone project
  at=("--cluster=$cluster" "--zone=$zone" "--project=$project")
}

cluster() {
  need type bucket
  where
  run xpk cluster create "${at[@]}" --tpu-type="$type" --num-slices="$slices" \
    "$([[ -n $spot ]] && echo --spot || echo --on-demand)" --enable-gcsfuse-csi-driver
  run xpk storage attach attrjax-runs "${at[@]}" --type=gcsfuse --bucket="$bucket" --size=1 \
    --mount-point=/attrjax/runs --readonly=false --auto-mount=true --mount-options=implicit-dirs
}

image() {
  need image
  run docker build --file=launch/Dockerfile --tag="$image" .
  run docker push "$image"
}

through_xpk() {
  need name type image
  where
  for_attrjax
  local command
  # exec: the signal must reach python, not the shell around it.
  command="cd /attrjax && exec $(quote python -m attrjax.main --coordinator=auto --resume "${rest[@]}")"
  run xpk workload create --workload="$name" "${at[@]}" --tpu-type="$type" --num-slices="$slices" \
    --docker-image="$image" --max-restarts="$max_restarts" --restart-on-exit-codes=1 \
    --termination-grace-period-seconds="$grace" --command="$(kept "$command")"
}

# Kubernetes replaces $(NAME) in commands, and $$ by $.
kept() { printf '%s' "${1//\$/\$\$}"; }

apply() {
  need name type image bucket
  for_attrjax
  printable "$image" "$bucket" "$service_account" "${rest[@]}"
  slice_of "$type"
  local text
  text=$(manifest)
  if [[ -n $dry_run ]]; then
    printf "kubectl apply --filename=- <<'EOF'\n%s\nEOF\n" "$text"
  else
    kubectl apply --filename=- <<<"$text"
  fi
}

# launch/jobset.yaml with its marked lines filled in. JSON's words are YAML's too.
manifest() {
  local line mark arguments=() argument
  for argument in "${rest[@]}"; do arguments+=("$(json "$(kept "$argument")")"); done
  while IFS= read -r line; do
    mark=${line##*  \# }
    case $mark in
      --name) fill "$line" "$(json "$name")" ;;
      --max_restarts) fill "$line" "$max_restarts" ;;
      --slices) fill "$line" "$slices" ;;
      hosts) fill "$line" "$hosts" ;;
      chips) fill "$line" "$chips" ;;
      --grace) fill "$line" "$grace" ;;
      --service_account) fill "$line" "$(json "$service_account")" ;;
      accelerator) fill "$line" "$(json "$accelerator")" ;;
      topology) fill "$line" "$(json "$topology")" ;;
      --spot) [[ -z $spot ]] || fill "$line" '"true"' ;;
      --image) fill "$line" "$(json "$image")" ;;
      "attrjax's own") fill "$line" "[$(IFS=,; printf '%s' "${arguments[*]}")]" ;;
      --bucket) fill "$line" "$(json "$bucket")" ;;
      *) [[ $line == \#* ]] || printf '%s\n' "$line" ;;
    esac
  done <launch/jobset.yaml
}

fill() { printf '%s: %s\n' "${1%%: *}" "$2"; }

# printable WORD...: `json` can write these. It cannot itself say no: what ends $(json ...) ends nothing else.
printable() {
  local word
  for word; do
    [[ ${word//[$'\n\t\r']/} != *[[:cntrl:]]* ]] ||
      die "there is a control character in $(quote "$word"): leave it out"
  done
}

json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t} text=${text//$'\r'/\\r}
  printf '"%s"' "$text"
}

# What GKE calls a slice of this type: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
slice_of() {
  local size=${1##*-}
  chips=4
  case $1 in
    v5litepod-*) accelerator=tpu-v5-lite-podslice ;;
    v6e-*) accelerator=tpu-v6e-slice ;;
    v5p-*) accelerator=tpu-v5p-slice ;;
    *) die "--type=$1 is not known here (v5litepod-, v6e- and v5p-)" ;;
  esac
  case $1 in
    v5p-8) topology=2x2x1 ;; # named after its cores, two on a chip
    v5p-16) topology=2x2x2 ;;
    v5p-32) topology=2x2x4 ;;
    v5p-64) topology=2x4x4 ;;
    v5p-128) topology=4x4x4 ;;
    v5p-256) topology=4x4x8 ;;
    v5p-*) die "the topology of --type=$1 is not known here (v5p-8 to v5p-256)" ;;
    *-1) topology=1x1 chips=1 ;;
    *-4) topology=2x2 ;;
    *-8) topology=2x4 chips=8 ;;
    *-16) topology=4x4 ;;
    *-32) topology=4x8 ;;
    *-64) topology=8x8 ;;
    *-128) topology=8x16 ;;
    *-256) topology=16x16 ;;
    *) die "there is no --type=$1: it has 1, 4, 8, 16, 32, 64, 128 or 256 chips" ;;
  esac
  hosts=$((size / chips))
  [[ $1 != v5p-* ]] || hosts=$((size / 8))
}

status() {
  need name
  if [[ -n $dry_run ]]; then
    run kubectl get jobset "$name" --output=wide
    run kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=$name"
    return
  fi
  local found
  found=$(kubectl get jobset "$name" --output=wide --ignore-not-found)
  [[ -n $found ]] || { echo ABSENT; return; }
  printf '%s\n' "$found"
  kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=$name"
}

logs() {
  need name
  run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" \
    --prefix --tail=200 ${follow:+--follow}
}

stop() {
  need name
  run kubectl delete jobset "$name" --ignore-not-found --cascade=foreground
}

delete() {
  where
  run xpk cluster delete "${at[@]}" --force
}

main "$@"
