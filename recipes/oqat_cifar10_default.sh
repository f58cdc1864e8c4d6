#!/bin/sh
# OQAT on CIFAR-10 (JPEG q75) as a folder of class folders with the defaults of November 2026: MobileNetV3 at 32 px, full width, 16 epochs in float
# and 12 per bit-width. Four to six hours of a machine with 2 cores. DATA is a folder with the train and test parquet
# files (columns img, label).
# Result: results/README.md#the-default-run
set -e
: "${DATA:?set DATA to the folder of parquet files}"
python recipes/class_folders.py "$DATA" runs/cifar10-images
oncequant run --precision float32 --optimizer adamw --float-sandwich --preset cifar --batch-size 64 --data runs/cifar10-images --run runs/cifar10-default
python recipes/collect_runs.py results/cifar10-jpeg75_oqat-default_cpu_202611.csv runs/cifar10-default \
    --fronts results/cifar10-jpeg75_oqat-default-fronts_cpu_202611.csv
cp runs/cifar10-default/report/pareto.png docs/pareto_cifar10_default.png
