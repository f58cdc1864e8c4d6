#!/bin/sh
# OQAT on CIFAR-10 (JPEG q75) with the default residual networks in so many hours of one core, and the best networks for a
# board of 64 kB of RAM and 128 kB of flash. DATA is a folder with the train and test parquet files (columns img, label).
# Result: results/README.md#residual-networks-in-two-hours-of-one-core
set -e
: "${DATA:?set DATA to the folder of parquet files}"
RUN=${RUN:-runs/cifar10-hours}
taskset -c 1 oncequant run --data "$DATA" --preset resnet-cifar --hours 1.75 --run "$RUN"
python recipes/collect_runs.py results/cifar10-jpeg75_oqat-hours_cpu_202611.csv "$RUN"
taskset -c 1 oncequant search "$RUN" --target cortex-m4
taskset -c 1 oncequant export "$RUN" 4bit-cortex-m4 3bit-cortex-m4 2bit-cortex-m4 --formats c package
python recipes/collect_board.py results/cifar10-jpeg75_oqat-cortex-m4_cpu_202611.csv "$RUN"
python recipes/c_backends.py results/cifar10-jpeg75_c-backends_cpu_202611.csv "$RUN"
