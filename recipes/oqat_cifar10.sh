#!/bin/sh
# OQAT on CIFAR-10 (JPEG q75), claims C1-C3 with three seeds and the front of one supernet, at the scale that a machine
# with 2 cores finishes in two and a half hours: half width, 16 and 20 px, 1 or 2 blocks per stage; 4 epochs in float and 2
# epochs per bit-width. DATA is a folder with the train and test parquet files (columns img, label).
# Result: results/README.md#oqat-on-cifar-10-jpeg-q75
set -e
: "${DATA:?set DATA to the folder of parquet files}"
SCALE="--preset cifar --width 0.5 --resolutions 16 20 --depths 1 2 --kernel-sizes 3 5 --expand-ratios 2 3 4
       --batch-size 128 --float-epochs 4 --epochs 2 --quantized-lr 4e-3 --random-subnets 1 --always-smallest --label-share 0 --largest-share 0 --validation-fraction 0.15 --label-smoothing 0 --max-train 45000"
for seed in 0 1 2; do
    python recipes/oqat_claims.py --data "$DATA" --out runs/cifar10-claims --seed $seed --random-archs 5 $SCALE
done
python recipes/oqat_claims.py --out runs/cifar10-claims --summarise results/cifar10-jpeg75_oqat-claims_cpu_202611.csv
oncequant run --precision float32 --optimizer adamw --float-sandwich --data "$DATA" --run runs/cifar10 --evaluations 40 $SCALE
python recipes/collect_runs.py results/cifar10-jpeg75_oqat_cpu_202611.csv runs/cifar10 \
    --fronts results/cifar10-jpeg75_oqat-fronts_cpu_202611.csv
cp runs/cifar10/report/pareto.png docs/pareto_cifar10.png
