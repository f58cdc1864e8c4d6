#!/bin/sh
# Claim C4 on CIFAR-10 (JPEG q75): subnets of OQAT's 2-bit supernet against networks trained for each budget, for 1, 10 and
# 40 deployments. Dozens of networks are trained, so they are for microcontrollers (preset nano at 8 and 12 px) and train
# for 2 epochs in float and 1 per bit-width. DATA is a folder with the train and test parquet files (columns img, label).
# About three quarters of an hour on one core. At full scale EPOCHS=16, PRESET=cifar, RESOLUTIONS="20 24 28 32".
# Result: results/README.md#claim-c4
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${RUN:=runs/cifar10-compare}" "${SEED:=0}" "${EPOCHS:=1}"
oncequant train --precision float32 --optimizer adamw --float-sandwich --data "$DATA" --run "$RUN" --seed "$SEED" --preset "${PRESET:=nano}" --resolutions ${RESOLUTIONS:=8 12} \
    --batch-size 128 --float-epochs $((2 * EPOCHS)) --epochs "$EPOCHS" --min-steps 0 --label-smoothing 0
oncequant compare "$RUN" --bits 2 --deployments 40 --evaluations 80 \
    --ways supernet nas-then-quantize search-then-retrain uniform
cp "$RUN/compare.csv" results/cifar10-jpeg75_oqat-compare_cpu_202611.csv
