#!/bin/sh
# Networks in C of all three methods and families, trained on digits: every backend of this machine on every test picture, the
# self-test on emulated Cortex-M cores. Some ten minutes on two cores.
# Result: results/README.md#networks-in-c-of-all-methods
set -e
RUNS=${RUNS:-runs}
oncequant run --run "$RUNS/c-oqat" --bit-schedule 8 4 3 2
oncequant run --run "$RUNS/c-oqat-nano" --preset nano --optimizer adamw
oncequant run qfa --run "$RUNS/c-qfa" --bits 2 3 4
oncequant run qfa --run "$RUNS/c-qfa-nano" --preset nano --bits 2 3 4
oncequant run dnas --run "$RUNS/c-dnas" --preset resnet20 --cost bitops
for run in c-oqat c-oqat-nano c-qfa c-qfa-nano c-dnas; do
    oncequant export "$RUNS/$run" --formats onnx package c
done
python recipes/c_backends.py results/digits_c-backends_cpu_202611.csv \
    "$RUNS/c-oqat" "$RUNS/c-oqat-nano" "$RUNS/c-qfa" "$RUNS/c-qfa-nano" "$RUNS/c-dnas"
