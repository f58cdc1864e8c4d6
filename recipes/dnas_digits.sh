#!/bin/sh
# DNAS on the bundled digits, three seeds, beside uniform bit-widths and random architectures of equal cost; bytes of
# weights and BitOPs. About 20 minutes on one core. Result: results/README.md#dnas-on-digits
set -e
export OMP_NUM_THREADS=1
for cost in weight_bytes bitops; do
    for seed in 0 1 2; do
        python recipes/dnas_claims.py --out "runs/digits-dnas-$cost" --seed $seed --resolution 8 --edge-bits 8 \
            --dnas.cost $cost --dnas.jobs 1
    done
    python recipes/dnas_claims.py --out "runs/digits-dnas-$cost" --summarise "results/digits_dnas-${cost}_cpu_202611.csv"
done
