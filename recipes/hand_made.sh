#!/bin/sh
# OQAT's subnets beside ResNet-8 as one builds it by hand, scaled to each of nine budgets, at equal training time
# (`oncequant compare`): digits with three seeds, at 4 and 2 bits; CIFAR-10 (JPEG q75) at 4 bits, one seed, budgets of
# BitOPs and of packed weights. DATA is a folder
# with the train and test parquet files. Nothing else may run on the core, since time is what is shared. One core: digits
# 20 minutes a seed, CIFAR-10 three hours. Result, of an earlier commit and CIFAR-10 alone: results/README.md#made-by-hand
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${SEEDS:=0 1 2}"
ways="--ways supernet hand-made hand-made-whole"
for seed in $SEEDS; do
    run="runs/hand-made/digits-$seed"
    oncequant train --precision float32 --seed "$seed" --run "$run"
    for bits in 4 2; do
        oncequant compare "$run" --bits $bits --deployments 9 $ways
        cp "$run/compare.json" "$run/compare-$bits.json"
    done
done
run=runs/hand-made/cifar10
oncequant train --precision float32 --data "$DATA" --run "$run" --preset resnet-cifar --depths 1 --batch-size 128 \
    --float-epochs 4 --epochs 3 --bit-schedule 4
for front in bitops weight_bytes; do
    oncequant compare "$run" --bits 4 --deployments 9 --evaluations 30 $ways --front $front
    cp "$run/compare.json" "$run/compare-4-$front.json"
done
python recipes/collect_compare.py results/hand-made_cpu_202611.csv runs/hand-made/*/compare-*.json
