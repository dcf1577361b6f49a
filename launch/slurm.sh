#!/usr/bin/env bash
# attrjax on a Slurm cluster with GPUs: submits launch/slurm.sbatch, and looks after the job.
#
#   launch/slurm.sh run    [--name=attrjax] [--nodes=1] [--gpus=8] [--time=24:00:00] [--partition=P] [--account=A]
#                          -- --config=FILE --workdir=runs/RUN ...
#   launch/slurm.sh status | logs [--name=attrjax] [--follow] | stop | delete --job=JOB
#
#   run     one process for each of the --gpus of each of the --nodes, and prints the JOB's number. The repository,
#           with its .venv (extra cuda), must lie on a disk that all nodes see
#   status  the job's state; ABSENT where Slurm has forgotten it
#   stop    SIGTERM: training saves its step, and the job does not come back; `run` with the same arguments goes on
#   delete  ends the job at once; what was saved before stays
#
# --dry_run prints the commands instead. It costs the nodes' hours while the job runs; waiting costs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

name=attrjax nodes=1 gpus=8 time=24:00:00 partition='' account='' job='' follow=''

main() {
  [[ ${1-} != --help ]] || { usage; exit; }
  options "name= nodes= gpus= time= partition= account= job= follow" "${@:2}"
  named name
  whole nodes gpus
  [[ ${1-} == run ]] || ((${#rest[@]} == 0)) || die "${rest[0]} belongs to no option"
  case ${1-} in
    run) submit ;;
    status) about_job && status ;;
    logs) about_job && logs ;;
    stop) about_job && stop ;;
    delete) about_job && run scancel "$job" ;;
    *) die "what shall it do? launch/slurm.sh {run,status,logs,stop,delete}" ;;
  esac
}

submit() {
  for_attrjax
  run mkdir -p runs/slurm
  run sbatch --job-name="$name" --nodes="$nodes" --gpus-per-node="$gpus" --ntasks-per-node="$gpus" --time="$time" \
    ${partition:+"--partition=$partition"} ${account:+"--account=$account"} launch/slurm.sbatch "${rest[@]}"
}

about_job() {
  need job
  whole job
}

status() {
  local what=(squeue --noheader --jobs="$job" '--format=%i %j %T %M %R') found
  if [[ -n $dry_run ]]; then
    run "${what[@]}"
  elif found=$("${what[@]}" 2>&1) || [[ $found == *"Invalid job id"* ]]; then
    [[ $found != *"Invalid job id"* ]] || found=''
    printf '%s\n' "${found:-ABSENT}"
  else
    die "squeue: $found"
  fi
}

logs() {
  local file=runs/slurm/$name-$job.log
  [[ -n $dry_run || -e $file ]] || die "there is no $file: the job has not begun, or has another --name"
  run tail -n 200 ${follow:+-F} "$file"
}

stop() {
  run scontrol update "JobId=$job" Requeue=0
  run scancel --signal=TERM "$job" # to the processes, not to the script around them
}

main "$@"
