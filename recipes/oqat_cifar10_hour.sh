#!/bin/sh
# OQAT on CIFAR-10 (JPEG q75) with the defaults, an hour of two cores: residual networks, three along the front of each
# bit-width. Then the most accurate network of each bit-width within the bytes and BitOPs that results/README.md asks for,
# some minutes each. DATA is a folder with the train and test parquet files (columns img, label). For larger networks:
# NAME=deep PRESET=resnet-cifar-deep.
# Result: results/README.md#the-default-run-in-an-hour and #larger-networks-in-an-hour
set -e
: "${DATA:?set DATA to the folder of parquet files}" "${SEEDS:=0}" "${NAME:=hour}" "${PRESET:=auto}"
for seed in $SEEDS; do
    run=runs/cifar10-$NAME-$seed
    oncequant run --data "$DATA" --run "$run" --seed "$seed" --preset "$PRESET"
    for budget in "weight_bytes<=45k" "weight_bytes<=25k" "bitops<=50M"; do
        oncequant search "$run" --budget "$budget"
    done
done
runs=$(for seed in $SEEDS; do echo "runs/cifar10-$NAME-$seed"; done)
python recipes/collect_runs.py "results/cifar10-jpeg75_oqat-${NAME}_cpu_202611.csv" $runs \
    --budgets "results/cifar10-jpeg75_oqat-$NAME-budgets_cpu_202611.csv"
