#!/bin/sh
# DNAS on CIFAR-10 (JPEG q75), ResNet-20 at 32 px with float edges as in the paper: claim C7 and the compute mode, three
# seeds, beside uniform bit-widths and random architectures of equal cost. DATA is a folder with the train and test
# parquet files (columns img, label). EPOCHS networks train as long: 160 and a search of 90 in the paper, days on two
# cores; 3 take about an hour and a half a seed and cost on one core. Not run yet.
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${EPOCHS:=3}"
for cost in weight_bytes bitops; do
    for seed in 0 1 2; do
        python recipes/dnas_claims.py --data "$DATA" --out "runs/cifar10-dnas-$cost" --seed $seed --resolution 32 \
            --edge-bits 32 --batch-size 128 --float-epochs "$EPOCHS" --epochs "$EPOCHS" --dnas.samples 4 \
            --dnas.cost $cost --dnas.jobs 1
    done
    python recipes/dnas_claims.py --out "runs/cifar10-dnas-$cost" \
        --summarise "results/cifar10-jpeg75_dnas-${cost}_cpu_202611.csv"
done
