#!/bin/sh
# Claim C4 on CIFAR-10 (JPEG q75): subnets of OQAT's 2-bit supernet against networks trained for each budget, for 1, 10 and
# 40 deployments; networks for microcontrollers (preset nano at 12 and 16 px), because about fifty of them are trained.
# DATA is a folder with the train and test parquet files (columns img, label). About an hour and a half on one core.
# Result: results/README.md#claim-c4
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${RUN:=runs/cifar10-compare}" "${SEED:=0}"
oncequant train --data "$DATA" --run "$RUN" --seed "$SEED" --preset nano --resolutions 12 16 --batch-size 128 \
    --float-epochs 4 --epochs 2 --quantized-lr 4e-3 --label-smoothing 0
oncequant compare "$RUN" --bits 2 --deployments 40 --evaluations 120
