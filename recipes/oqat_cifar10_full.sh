#!/bin/sh
# OQAT on CIFAR-10 at full scale: the `cifar` preset as it is (32 px, full width), long schedule. Not run yet: days on a
# CPU, meant for one GPU. DATA is a folder with the train and test parquet files (columns img, label), or a hub name.
set -e
: "${DATA:?set DATA to the folder of parquet files}"
for seed in 0 1 2; do
    python recipes/oqat_claims.py --data "$DATA" --out runs/cifar10-full-claims --seed $seed --preset cifar \
        --batch-size 128 --float-epochs 120 --epochs 40 --random-subnets 2 --always-smallest --label-share 0 --largest-share 0 --validation-fraction 0.15
    oncequant run --precision float32 --optimizer adamw --float-sandwich --data "$DATA" --run runs/cifar10-full-seed$seed --seed $seed --preset cifar \
        --batch-size 128 --float-epochs 120 --epochs 40 --random-subnets 2 --always-smallest --label-share 0 --largest-share 0 --validation-fraction 0.15 --evaluations 200
done
NAME="results/cifar10-full_oqat"
python recipes/oqat_claims.py --out runs/cifar10-full-claims --summarise "${NAME}-claims_${DEVICE:-gpu}.csv"
python recipes/collect_runs.py "${NAME}_${DEVICE:-gpu}.csv" runs/cifar10-full-seed0 runs/cifar10-full-seed1 \
    runs/cifar10-full-seed2 --fronts "${NAME}-fronts_${DEVICE:-gpu}.csv"
