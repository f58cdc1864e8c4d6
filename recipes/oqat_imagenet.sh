#!/bin/sh
# OQAT on ImageNet, MobileNetV3 space of width 1.0, on the GPUs of one machine (several: see torchrun's --nnodes).
# DATA is a folder with train/<class>/*.JPEG and test/<class>/*.JPEG (the 50,000 images that ImageNet calls validation),
# RUN the run folder, DEVICES the number of GPUs, OPTIONS anything to override.
# Not run at full scale yet; tests/test_recipes.py runs it on a few generated JPEGs.
#
# From the code that OQA builds on (OFA): batch 64 a GPU, SGD with Nesterov momentum, learning rate 0.0075 a GPU, weight
# decay 3e-5, label smoothing 0.1, 10,000 training images held out, resolutions 128 to 224. OQA did not publish the
# epochs of its stages, nor how its float supernet was trained: 120 epochs in float and 25 per bit-width are ours.
set -e
: "${DATA:?set DATA to the folder of images}" "${RUN:=runs/imagenet}" "${DEVICES:=8}" "${EVALUATIONS:=200}"
LR=$(awk "BEGIN {print 0.0075 * $DEVICES}")
QUANTIZED_LR=$(awk "BEGIN {print 0.0025 * $DEVICES}")
torchrun --standalone --nproc-per-node "$DEVICES" -m oncequant -- train --data "$DATA" --run "$RUN" \
    --preset imagenet --edge-bits 32 --se-bits 32 --optimizer sgd --float-sandwich --batch-size $((64 * DEVICES)) --lr "$LR" \
    --quantized-lr "$QUANTIZED_LR" --weight-decay 3e-5 --label-smoothing 0.1 --float-epochs 120 --epochs 25 \
    --random-subnets 2 --always-smallest --label-share 0 --largest-share 0 --validation-fraction 0.0078 $OPTIONS
oncequant search "$RUN" --devices "$DEVICES" --evaluations "$EVALUATIONS"
oncequant export "$RUN"
oncequant report "$RUN"
