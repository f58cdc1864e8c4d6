#!/bin/sh
# QFA on CIFAR-10 (JPEG q75): claims C5 and C8 with three seeds, front of one supernet, claim C6 on it, at the scale of
# recipes/oqat_cifar10.sh: half width, 16 and 20 px (C8: 16), 1 or 2 blocks per stage; 4 epochs in float, 1 with float
# among the bit-widths, 2 without. Combinations of stabilisers on networks of preset nano at 8 and 12 px, half as long.
# DATA is a folder with the train and test parquet files (columns img, label). Each step takes one thread, so two can run
# side by side. Result: results/README.md#qfa-on-cifar-10-jpeg-q75
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}"
WIDTHS="--preset cifar --width 0.5 --depths 1 2 --kernel-sizes 3 5 --expand-ratios 2 3"
TRAIN="--batch-size 128 --label-smoothing 0 --max-train 45000"
SCALE="$WIDTHS $TRAIN --float-epochs 4 --epochs 2 --quantized-lr 4e-3"
claims() { # part, options
    part=$1
    shift
    for seed in 0 1 2; do
        python recipes/qfa_claims.py --data "$DATA" --out "runs/cifar10-qfa-$part" --part "$part" --seed $seed "$@"
    done
    python recipes/qfa_claims.py --out "runs/cifar10-qfa-$part" --part "$part" \
        --summarise "results/cifar10-jpeg75_qfa-${part}_cpu_202611.csv"
}
claims quantizers --random-archs 3 --mixed 6 --resolutions 16 20 $SCALE
claims uniform --resolutions 16 $SCALE
claims stabilisers --random-archs 5 --mixed 12 --preset nano --resolutions 8 12 --float-epochs 2 --epochs 1 \
    --min-steps 0 $TRAIN
oncequant run qfa --precision float32 --optimizer adamw --float-sandwich --data "$DATA" --run runs/cifar10-qfa --evaluations 200 --learned-offsets 1 \
    --resolutions 16 20 $SCALE
python recipes/qfa_fronts.py runs/cifar10-qfa --out results/cifar10-jpeg75_qfa-fronts_cpu_202611.csv \
    --picture docs/qfa_cifar10.png
python recipes/collect_runs.py results/cifar10-jpeg75_qfa_cpu_202611.csv runs/cifar10-qfa
python recipes/qfa_predictor.py runs/cifar10-qfa --measured 2200 --on-test \
    --out results/cifar10-jpeg75_qfa-predictor_cpu_202611.csv
