#!/bin/sh
# The default runs of OQAT and QFA on digits, three seeds, and OQAT with AdamW for comparison, one seed.
# About four minutes a run on one core; two can run side by side. Result: results/README.md#muon-and-a-float-stage-of-the-largest-network-alone
set -e
export OMP_NUM_THREADS=1
for method in oqat qfa; do
    for seed in 0 1 2; do
        oncequant run $method --precision float32 --seed $seed --run runs/digits-muon/$method-$seed
    done
    what=$([ $method = oqat ] && echo growing || echo muon) # OQAT's images grow; digits_oqat-muon is of commits before that
    python recipes/collect_runs.py results/digits_$method-${what}_cpu_202611.csv \
        runs/digits-muon/$method-0 runs/digits-muon/$method-1 runs/digits-muon/$method-2
done
oncequant run --precision float32 --optimizer adamw --run runs/digits-muon/oqat-adamw
