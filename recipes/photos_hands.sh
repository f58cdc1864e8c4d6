#!/bin/sh
# Photographs of hands that show digits (github.com/ardamavi/Sign-Language-Digits-Dataset, 2,062 of mostly 100 px), by
# `oncequant run` with its defaults in 21 minutes of one core. DATA is the folder Dataset of that repository.
# Result: results/README.md#photographs
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of class folders}" "${RUN:=runs/photos}"
oncequant run --data "$DATA" --run "$RUN" --no-flip --hours 0.35
python recipes/collect_runs.py results/photos-hands_cpu_202611.csv "$RUN"
