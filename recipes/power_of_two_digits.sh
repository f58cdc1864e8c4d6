#!/bin/sh
# Steps that are powers of two, for FPGA tools, against any steps: OQAT on digits by default, three seeds each.
# Time: a quarter of an hour on 2 cores. Result: results/README.md#steps-that-are-powers-of-two
set -e
export OMP_NUM_THREADS=1
for seed in 0 1 2; do
    oncequant run --seed $seed --run runs/steps-any/$seed
    oncequant run --seed $seed --run runs/steps-power-of-two/$seed --power-of-two-steps
done
python recipes/collect_runs.py results/digits_steps-any_cpu_202611.csv runs/steps-any/*
python recipes/collect_runs.py results/digits_steps-power-of-two_cpu_202611.csv runs/steps-power-of-two/*
