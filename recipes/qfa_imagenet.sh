#!/bin/sh
# QFA on ImageNet, MobileNetV3 space of width 1.2, on the GPUs of one machine (several: see torchrun's --nnodes).
# DATA is a folder with train/<class>/*.JPEG and test/<class>/*.JPEG (the 50,000 images that ImageNet calls validation),
# RUN the run folder, DEVICES the number of GPUs, OPTIONS anything to override.
# Not run at full scale yet; tests/test_recipes.py runs it on a few generated JPEGs.
#
# From the official code: 60 epochs with float among the bit-widths and 120 without, batch 64 a GPU, SGD with Nesterov
# momentum, learning rate 0.0025 a GPU, gradients summed over 6 subnets and clipped at 500, weight decay 3e-5 (here they
# are averaged: six times the rate, a sixth of the limit and of the decay), label smoothing 0.1, ranges of each GPU's own
# batch, 1,920 images for statistics (of batch norm; of ranges the first 512), 10,000 training images held out, 8,000
# subnets measured, population 500, 1,000 generations, the whole front measured. It starts from a published float
# supernet; here 120 epochs of the sandwich rule make one. Warm-up is a twentieth of each stage, within its epochs; the
# official 5 epochs come on top. Training crops have a quarter of the area or more and their colours are left alone, where
# the OFA code, from which the official one is made, has 8 percent or more and colour jitter.
set -e
: "${DATA:?set DATA to the folder of images}" "${RUN:=runs/imagenet-qfa}" "${DEVICES:=32}" "${EVALUATIONS:=8000}"
LR=$(awk "BEGIN {print 0.0075 * $DEVICES}")
QUANTIZED_LR=$(awk "BEGIN {print 6 * 0.0025 * $DEVICES}")
torchrun --standalone --nproc-per-node "$DEVICES" -m oncequant -- train qfa --data "$DATA" --run "$RUN" \
    --preset imagenet --width 1.2 --se-bits 32 --optimizer sgd --float-sandwich --batch-size $((64 * DEVICES)) --lr "$LR" \
    --quantized-lr "$QUANTIZED_LR" --clip-norm 83 --weight-decay 5e-6 --label-smoothing 0.1 --float-epochs 120 \
    --epochs 120 --calibration-images 1920 --validation-fraction 0.0078 --range-batch 64 --no-sync-ranges \
    --learned-offsets 1 $OPTIONS
oncequant search "$RUN" --devices "$DEVICES" --evaluations "$EVALUATIONS" --front qfa_mflops \
    --population "${POPULATION:-500}" --generations "${GENERATIONS:-1000}" --front-members 0
oncequant export "$RUN"
oncequant report "$RUN"
