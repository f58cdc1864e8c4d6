#!/bin/sh
# Networks in C of all three methods and both elastic families, trained on CIFAR-10 (JPEG q75): every backend of this
# machine on all 10,000 test pictures, the self-test on emulated Cortex-M cores. DATA is a folder with the train and test
# parquet files (columns img, label), RUN the folder of an OQAT run (recipes/oqat_cifar10_hour.sh). The others are trained
# shortly, on 10,000 images: what is asked is whether files compute the same, so accuracies say little.
# Result: results/README.md#networks-in-c-of-all-methods
set -e
: "${DATA:?set DATA to the folder of parquet files}" "${RUN:?set RUN to the folder of an OQAT run}" "${RUNS:=runs}"
SHORT="--max-train 10000 --float-epochs 4 --epochs 3 --formats onnx package c"
oncequant export "$RUN" --formats onnx package c
oncequant run --data "$DATA" --run "$RUNS/c10-oqat-cifar" --preset cifar --optimizer adamw --evaluations 12 $SHORT
oncequant run qfa --data "$DATA" --run "$RUNS/c10-qfa" --bits 2 3 4 8 --evaluations 40 $SHORT
oncequant run qfa --data "$DATA" --run "$RUNS/c10-qfa-cifar" --preset cifar --bits 2 3 4 8 --optimizer adamw \
    --evaluations 40 $SHORT
oncequant run dnas --data "$DATA" --run "$RUNS/c10-dnas" --preset resnet20 --cost bitops $SHORT
python recipes/c_backends.py results/cifar10-jpeg75_c-methods_cpu_202611.csv \
    "$RUN" "$RUNS/c10-oqat-cifar" "$RUNS/c10-qfa" "$RUNS/c10-qfa-cifar" "$RUNS/c10-dnas"
