#!/bin/bash
# StatsMerging of configs/cluster/sml.yaml on two machines of a SLURM cluster, one task per GPU:
#   sbatch configs/cluster/slurm.sh
# srun starts the processes and tells each its number; a job that was stopped goes on where its
# last epoch ended when it is submitted again, on as many processes.
#SBATCH --job-name=merge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 python -m lightning_merge fit --config configs/cluster/sml.yaml \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --data.batch_size 1
