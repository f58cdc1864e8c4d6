#!/bin/sh
# Training steps in bfloat16 against float32, three seeds: digits at a third of the default schedule, CIFAR-10 (JPEG q75)
# at the scale of oqat_cifar10.sh. DATA is the folder of CIFAR-10's parquet files.
# Time: ten minutes and two hours on 2 cores. Result: results/README.md#training-in-bfloat16
set -e
: "${DATA:?set DATA to the folder of parquet files}"
SCALE="--preset cifar --width 0.5 --resolutions 16 20 --depths 1 2 --kernel-sizes 3 5 --expand-ratios 2 3 4
       --batch-size 128 --float-epochs 4 --epochs 2 --quantized-lr 4e-3 --random-subnets 1 --always-smallest --label-share 0 --largest-share 0 --validation-fraction 0.15 --label-smoothing 0"
export OMP_NUM_THREADS=1
for seed in 0 1 2; do
    python recipes/oqat_options.py --data digits --preset nano --out runs/precision-digits --seed $seed --changes bfloat16 --min-steps 150
    python recipes/oqat_options.py --data "$DATA" --out runs/precision-cifar10 --seed $seed --changes bfloat16 --random-archs 5 $SCALE
done
python recipes/oqat_options.py --out runs/precision-digits --summarise results/digits_oqat-precision_cpu_202611.csv
python recipes/oqat_options.py --out runs/precision-cifar10 --summarise results/cifar10-jpeg75_oqat-precision_cpu_202611.csv
