#!/bin/sh
# DNAS on CIFAR-10 (JPEG q75), ResNet-20 with float edges as in the paper: claim C7 and the compute mode, beside uniform
# bit-widths and random architectures of equal cost. DATA is a folder with the train and test parquet files (columns img,
# label). The defaults are what one core with bfloat16 products (AMX) does in half an hour a seed for bytes and in an hour
# for BitOPs: images of 16 px, all networks and searches 6 epochs. At full scale RESOLUTION=32, EPOCHS=160.
# Result: results/README.md#dnas-on-cifar-10-jpeg-q75
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${EPOCHS:=6}" "${RESOLUTION:=16}" "${COSTS:=weight_bytes bitops}"
: "${SEEDS:=0 1 2}"
for cost in $COSTS; do
    for seed in $SEEDS; do
        python recipes/dnas_claims.py --data "$DATA" --out "runs/cifar10-dnas-$cost" --seed "$seed" \
            --resolution "$RESOLUTION" --edge-bits 32 --batch-size 128 --float-epochs "$EPOCHS" --epochs "$EPOCHS" \
            --label-smoothing 0 --precision bfloat16 --samples 4 --cost "$cost" --jobs 1
    done
    python recipes/dnas_claims.py --out "runs/cifar10-dnas-$cost" \
        --summarise "results/cifar10-jpeg75_dnas-${cost}_cpu_202611.csv" --picture "docs/dnas_cifar10_$cost.png"
done
