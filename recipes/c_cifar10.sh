#!/bin/sh
# Networks in C of all three methods and both elastic families, trained on CIFAR-10 (JPEG q75): every backend of this
# machine on all 10,000 test pictures, the self-test on emulated Cortex-M cores. DATA is a folder with the train and test
# parquet files (columns img, label), RUN the folder of an OQAT run at full length, as recipes/oqat_cifar10_hour.sh makes
# it. The others are trained shortly, on 4,000 images: what is asked is whether files compute the same, so accuracies
# say nothing. The runs are independent of each other, so two can be made side by side. Not run to its end
# yet: plan an hour of two cores.
# Result: results/README.md#networks-in-c-of-all-methods
set -e
: "${DATA:?set DATA to the folder of parquet files}" "${RUN:?set RUN to the folder of an OQAT run}" "${RUNS:=runs}"
: "${ONLY:=oqat-cifar qfa qfa-cifar dnas}"
short="--data $DATA --max-train 4000 --min-steps 0 --float-epochs 6 --epochs 4 --formats onnx package c"
for each in $ONLY; do
    run="--run $RUNS/c10-$each"
    case $each in
    oqat-cifar) oncequant run $run $short --preset cifar --optimizer adamw --evaluations 6 ;;
    qfa) oncequant run qfa $run $short --bits 2 3 4 8 --evaluations 40 ;;
    qfa-cifar) oncequant run qfa $run $short --bits 2 3 4 8 --preset cifar --optimizer adamw --evaluations 40 ;;
    dnas) oncequant run dnas $run $short --preset resnet20 --cost bitops ;;
    esac
done
oncequant export "$RUN" 4bit-S 4bit-M 4bit-L 3bit-M 2bit-S 2bit-M --formats onnx package c
python recipes/c_backends.py results/cifar10-jpeg75_c-methods_cpu_202611.csv \
    "$RUN" "$RUNS/c10-oqat-cifar" "$RUNS/c10-qfa" "$RUNS/c10-qfa-cifar" "$RUNS/c10-dnas"
