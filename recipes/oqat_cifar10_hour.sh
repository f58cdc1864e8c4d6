#!/bin/sh
# OQAT on CIFAR-10 (JPEG q75) with the defaults, an hour of two cores: residual networks, three along the front of each
# bit-width. Then the most accurate network of each bit-width within the bytes and BitOPs that results/README.md asks for,
# some minutes each. DATA is a folder with the train and test parquet files (columns img, label).
# Result: results/README.md#the-default-run-in-an-hour
set -e
: "${DATA:?set DATA to the folder of parquet files}" "${SEEDS:=0}"
for seed in $SEEDS; do
    run=runs/cifar10-hour-$seed
    oncequant run --data "$DATA" --run "$run" --seed "$seed"
    for budget in "weight_bytes<=45k" "weight_bytes<=25k" "bitops<=50M"; do
        oncequant search "$run" --budget "$budget"
    done
done
runs=$(for seed in $SEEDS; do echo "runs/cifar10-hour-$seed"; done)
python recipes/collect_runs.py results/cifar10-jpeg75_oqat-hour_cpu_202611.csv $runs \
    --budgets results/cifar10-jpeg75_oqat-hour-budgets_cpu_202611.csv
