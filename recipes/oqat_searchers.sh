#!/bin/sh
# The searchers against random search on measured accuracies: CIFAR-10 (JPEG q75), small enough for three supernets and
# 1,620 measured subnets in three quarters of an hour on one core (preset nano at 8 and 12 px, 2 epochs in float and 1 per
# bit-width; 60 subnets per searcher and bit-width, the default). DATA is a folder with the train and test parquet files
# (columns img, label). Result: results/README.md#searchers
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${RUNS:=runs/cifar10-searchers}"
for seed in 0 1 2; do
    oncequant train --precision float32 --optimizer adamw --float-sandwich --data "$DATA" --run "$RUNS/seed$seed" --seed $seed --preset nano --resolutions 8 12 \
        --batch-size 128 --float-epochs 2 --epochs 1 --min-steps 0 --label-smoothing 0
    for searcher in random coarse_to_fine nsga2; do
        oncequant search "$RUNS/seed$seed" --searcher $searcher
    done
done
python recipes/oqat_searchers.py "$RUNS"/seed* --out results/cifar10-jpeg75_oqat-searchers_cpu_202611.csv
