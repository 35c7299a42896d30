#!/bin/bash
# The main job on a node that SLURM shares among users:
#     sbatch examples/slurm.sh cells.h5ad result
# `concerto` takes as many threads as --cpus-per-task gives. A minute before the time is up it is told
# to end; the job is then queued again, and the same command continues.
#SBATCH --job-name=concerto
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append

code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    concerto run "$1" -o "$2" || code=$?
if [[ $code -eq 130 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
