#!/usr/bin/env bash
# The part that the batch scripts share: the variables of the launchers, and the requeue. A batch script sources it.
#   PROCESSES_PER_NODE  processes on each node; default: the GPUs of the job on a node
#   OUTPUT_DIR          folder of the run, on a file system that all nodes share; default: runs/JOB_NAME-JOB_ID
#   MAX_RESTARTS        starts after the first; default: 100
if [[ $# -eq 0 ]]; then
    echo "no script was given, so there is nothing to train; write: sbatch ${0##*/} SCRIPT ARGUMENTS..." >&2
    exit 2
fi
if [[ -z "${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}" ]]; then
    echo "the job has no GPUs, so the number of processes is unknown; set PROCESSES_PER_NODE" >&2
    exit 2
fi
export PROCESSES="${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}"
export NODES="$SLURM_JOB_NUM_NODES"
nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export FIRST_NODE="${nodes%%$'\n'*}"
export PORT="$((20000 + SLURM_JOB_ID % 10000))"  # two jobs on one node have different ones
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # since SLURM 22.05 srun does not take it from sbatch
fi
OUTPUT_DIR="${OUTPUT_DIR:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}"
RESTARTS="${SLURM_RESTART_COUNT:-0}"
MAX_RESTARTS="${MAX_RESTARTS:-100}"

step="" signals=0

stop_step() {
    signals=$((signals + 1))
    if [[ -n "$step" ]]; then
        kill -TERM "$step"
    fi
}

# Return whether SLURM is taking the nodes of this job away, and has ended the step but not yet requeued the job.
preempted() {
    local job
    job="$(scontrol -o show job "$SLURM_JOB_ID")"
    [[ "$job" == *" JobState=RUNNING "* && "$job" == *" PreemptTime="* && "$job" != *" PreemptTime=None"* ]]
}

# Run a command with the options that name the run's folder and its checkpoint. If it is stopped by the signal of
# `#SBATCH --signal` or by preemption, put the job back into the queue; otherwise exit with the command's exit code.
run_and_requeue() {
    local before resume status=0
    trap stop_step USR1
    resume="$(python examples/slurm/resume.py "$OUTPUT_DIR" --restarts "$RESTARTS")"
    "$@" --output_dir "$OUTPUT_DIR" --resume_from_checkpoint "$resume" &
    step=$!
    if ((signals > 0)); then  # it came before there was a step to stop
        kill -TERM "$step"
    fi
    while true; do
        before=$signals status=0
        wait "$step" || status=$?
        if ((signals == before)); then  # otherwise the signal interrupted `wait`
            break
        fi
    done
    if ((status == 0)) || { ((signals == 0)) && ! preempted; }; then
        exit "$status"
    fi
    if ((RESTARTS >= MAX_RESTARTS)); then
        echo "the job was started $((RESTARTS + 1)) times and is not requeued; raise MAX_RESTARTS to go on" >&2
        exit "$status"
    fi
    scontrol requeue "$SLURM_JOB_ID"
}
