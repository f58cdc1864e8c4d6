#!/bin/sh
# OQAT on the bundled digits, three seeds: what README's first command was until 2026-11-28, with its spread, 650 steps per stage instead
# of 500; then claims and options at a third of that schedule (16 epochs in float, 12 per bit-width).
# Time: about 4 minutes a seed for the runs on 2 cores, half an hour for the rest. Result: results/README.md#oqat-on-digits
set -e
for seed in 0 1 2; do
    oncequant run --precision float32 --preset nano --optimizer adamw --float-sandwich --data digits --seed $seed --min-steps 650 --run runs/digits-seed$seed
done
python recipes/collect_runs.py results/digits_oqat_cpu_202611.csv runs/digits-seed0 runs/digits-seed1 runs/digits-seed2
for seed in 0 1 2; do
    python recipes/oqat_claims.py --data digits --preset nano --seed $seed --min-steps 150 --out runs/digits-claims
    mkdir -p runs/digits-options/seed$seed/default # the inherited supernets are the default
    cp runs/digits-claims/seed$seed/inherit/*.safetensors runs/digits-options/seed$seed/default
    python recipes/oqat_options.py --data digits --preset nano --seed $seed --min-steps 150 --out runs/digits-options
done
python recipes/oqat_claims.py --out runs/digits-claims --summarise results/digits_oqat-claims_cpu_202611.csv
python recipes/oqat_options.py --out runs/digits-options --summarise results/digits_oqat-options_cpu_202611.csv
