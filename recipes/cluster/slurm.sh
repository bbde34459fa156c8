#!/bin/bash
# I-JEPA's ViT-H/14 on 2 nodes of 8 GPUs; another recipe, and so another number of nodes, as the first argument:
#
#   sbatch --nodes 16 recipes/cluster/slurm.sh recipes/vjepa2/vitg16_256.yaml --data.root /path/to/lists
#
# Two minutes before the time limit, Slurm tells this script, which queues the job again; it goes on from its last
# checkpoint, in runs/<job>, as if it had not been interrupted. Give recipes of long epochs
# --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.save_last true --trainer.callbacks.every_n_train_steps 500
#SBATCH --job-name=jepa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
recipe=${1:-recipes/ijepa/imagenet_vith14.yaml}
srun jepa fit --config "$recipe" --trainer.num_nodes "$SLURM_NNODES" --trainer.enable_progress_bar false \
    --trainer.default_root_dir "runs/$SLURM_JOB_ID" --ckpt_path last "${@:2}" &
wait $!
