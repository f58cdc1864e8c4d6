#!/bin/sh
# QFA on the bundled digits, three seeds: the whole pipeline, claim C6 on its supernets, claims C5 and C8 and the
# stabilisers. About two and a half hours on one core; each step takes one thread, so two seeds can run side by side.
# Result: results/README.md#qfa-on-digits
set -e
export OMP_NUM_THREADS=1
for seed in 0 1 2; do
    oncequant run qfa --precision float32 --preset nano --optimizer adamw --float-sandwich --run "runs/digits-qfa/seed$seed" --seed $seed
done
python recipes/collect_runs.py results/digits_qfa_cpu_202611.csv runs/digits-qfa/seed*
python recipes/qfa_predictor.py runs/digits-qfa/seed* --measured 2200 --out results/digits_qfa-predictor_cpu_202611.csv
for part in quantizers uniform stabilisers; do
    for seed in 0 1 2; do
        python recipes/qfa_claims.py --out "runs/digits-qfa-$part" --preset nano --part $part --seed $seed --min-steps 650
    done
    python recipes/qfa_claims.py --out "runs/digits-qfa-$part" --part $part \
        --summarise "results/digits_qfa-${part}_cpu_202611.csv"
done
