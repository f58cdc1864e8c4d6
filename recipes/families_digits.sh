#!/bin/sh
# Elastic residual networks beside MobileNetV3 on the bundled digits, by OQAT and by QFA: default commands, three seeds.
# About five minutes a run on one core; two can run side by side. QFA with MobileNetV3: recipes/qfa_digits.sh.
# Result: results/README.md#residual-networks-on-digits
set -e
export OMP_NUM_THREADS=1
for seed in 0 1 2; do
    oncequant run --precision float32 --optimizer adamw --float-sandwich --preset nano --seed $seed --run runs/digits-families/oqat-nano-$seed
    oncequant run --precision float32 --optimizer adamw --float-sandwich --preset resnet-nano --seed $seed --run runs/digits-families/oqat-resnet-nano-$seed
    oncequant run qfa --precision float32 --optimizer adamw --float-sandwich --preset resnet-nano --seed $seed --run runs/digits-families/qfa-resnet-nano-$seed
done
for kind in oqat-nano oqat-resnet-nano qfa-resnet-nano; do
    python recipes/collect_runs.py results/digits_families-${kind}_cpu_202611.csv \
        runs/digits-families/$kind-0 runs/digits-families/$kind-1 runs/digits-families/$kind-2
done
