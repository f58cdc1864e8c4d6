#!/bin/sh
# OQAT on CIFAR-10 (JPEG q75) for a board with 64 kB of RAM and 128 kB of flash, one command, an hour of two cores with
# matrix units, an hour and a half without. Then, from the same supernets, the most accurate networks of each bit-width
# within bytes and BitOPs, and without a limit that matters, some minutes each. DATA is a folder with the train and test
# parquet files (columns img, label).
# Result: results/README.md#for-a-board-with-a-first-convolution-of-4-bits
set -e
: "${DATA:?set DATA to the folder of parquet files}" "${SEED:=0}"
run=runs/cifar10-board-$SEED
oncequant run --data "$DATA" --run "$run" --seed "$SEED" --target cortex-m4 --stem-bits 4
python recipes/collect_board.py results/cifar10-jpeg75_oqat-board_cpu_202611.csv "$run"
for budget in "weight_bytes<=45k" "weight_bytes<=25k" "bitops<=50M" "weight_bytes<=1M"; do
    oncequant search "$run" --budget "$budget"
done
python recipes/collect_runs.py "$run/networks.csv" "$run" --budgets results/cifar10-jpeg75_oqat-board-budgets_cpu_202611.csv
