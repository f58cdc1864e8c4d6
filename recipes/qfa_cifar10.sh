#!/bin/sh
# QFA on CIFAR-10 (JPEG q75): claims C5 and C8 with three seeds, front of one supernet, claim C6 on it, at the scale of
# recipes/oqat_cifar10.sh: half width, 16 and 20 px, 1 or 2 blocks per stage; 4 epochs in float, 1 with float among the
# bit-widths, 2 without. DATA is a folder with the train and test parquet files (columns img, label). Each step takes one
# thread, so two can run side by side. Result: results/README.md#qfa-on-cifar-10-jpeg-q75
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}"
SCALE="--preset cifar --width 0.5 --resolutions 16 20 --depths 1 2 --kernel-sizes 3 5 --expand-ratios 2 3
       --batch-size 128 --float-epochs 4 --epochs 2 --quantized-lr 4e-3 --label-smoothing 0 --max-train 45000"
for part in quantizers uniform; do
    for seed in 0 1 2; do
        python recipes/qfa_claims.py --data "$DATA" --out "runs/cifar10-qfa-$part" --part $part --seed $seed \
            --random-archs 3 --mixed 6 $SCALE
    done
    python recipes/qfa_claims.py --out "runs/cifar10-qfa-$part" --part $part \
        --summarise "results/cifar10-jpeg75_qfa-${part}_cpu_202611.csv"
done
for seed in 0; do
    python recipes/qfa_claims.py --data "$DATA" --out runs/cifar10-qfa-stabilisers --part stabilisers --seed $seed \
        --random-archs 2 --mixed 4 --only batchquant zero-offsets $SCALE
done
oncequant run --method qfa --data "$DATA" --run runs/cifar10-qfa --evaluations 200 --qfa.learned-offsets 1 $SCALE
python recipes/qfa_fronts.py runs/cifar10-qfa --out results/cifar10-jpeg75_qfa-fronts_cpu_202611.csv \
    --picture docs/qfa_cifar10.png
python recipes/collect_runs.py results/cifar10-jpeg75_qfa_cpu_202611.csv runs/cifar10-qfa
python recipes/qfa_predictor.py runs/cifar10-qfa --measured 850 --out results/cifar10-jpeg75_qfa-predictor_cpu_202611.csv
