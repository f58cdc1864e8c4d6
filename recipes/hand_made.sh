#!/bin/sh
# OQAT's subnets beside ResNet-8 as one builds it by hand, scaled to each budget, at equal training time (`oncequant
# compare`): digits with three seeds, nine budgets at 4 and 2 bits; CIFAR-10 (JPEG q75) at 4 bits, 9 and 40 budgets of
# packed weights and of BitOPs, from the default run of recipes/oqat_cifar10_hour.sh. DATA is a folder with the train and
# test parquet files. Nothing else may run, since time is what is shared. Digits on one core 20 minutes a seed; CIFAR-10
# on two cores an hour a seed, and three for the networks by hand.
# Not run as a whole yet: on CIFAR-10 bytes, nine budgets, one seed (results/README.md#made-by-hand-from-a-run-of-an-hour).
# What results/README.md#made-by-hand has is of this file at 7a52845 and 1dd4c08: other stages, one block, one seed.
set -e
: "${DATA:?set DATA to the folder of parquet files}" "${SEEDS:=0 1 2}" "${COUNTS:=9 40}" "${FRONTS:=weight_bytes bitops}"
: "${DIGITS:=yes}"
ways="--ways supernet hand-made hand-made-whole"
for seed in $SEEDS; do
    run="runs/hand-made/digits-$seed"
    [ "$DIGITS" = yes ] || break
    OMP_NUM_THREADS=1 oncequant train --precision float32 --seed "$seed" --run "$run"
    for bits in 4 2; do
        OMP_NUM_THREADS=1 oncequant compare "$run" --bits $bits --deployments 9 $ways
        cp "$run/compare.json" "$run/compare-$bits.json"
    done
done
for seed in $SEEDS; do
    run="runs/cifar10-hour-$seed"
    oncequant train --data "$DATA" --run "$run" --seed "$seed"
    for front in $FRONTS; do
        for count in $COUNTS; do
            oncequant compare "$run" --bits 4 --deployments "$count" --evaluations 30 $ways --front "$front"
            cp "$run/compare.json" "$run/compare-4-$front-$count.json"
        done
    done
done
[ "$DIGITS" != yes ] || python recipes/collect_compare.py results/digits_hand-made_cpu_202611.csv runs/hand-made/*/compare-*.json
python recipes/collect_compare.py results/cifar10-jpeg75_hand-made-hour_cpu_202611.csv runs/cifar10-hour-*/compare-4-*.json
