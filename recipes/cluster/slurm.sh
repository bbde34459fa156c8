#!/bin/bash
# I-JEPA's ViT-H/14 on 2 nodes of 8 GPUs; another recipe, and so another number of nodes, as the first argument:
#
#   sbatch --nodes 16 recipes/cluster/slurm.sh recipes/vjepa2/vitg16_256.yaml --data.root /path/to/lists
#
# A minute and a half before the time limit Slurm sends SIGUSR1: the run saves a checkpoint, queues itself again and goes
# on from there.
#SBATCH --job-name=jepa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --open-mode=append
set -euo pipefail
recipe=${1:-recipes/ijepa/imagenet_vith14.yaml}
srun jepa fit --config "$recipe" --trainer.num_nodes "$SLURM_NNODES" --trainer.enable_progress_bar false "${@:2}"
