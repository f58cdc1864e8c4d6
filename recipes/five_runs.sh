#!/bin/sh
# Five ways to small networks on CIFAR-10 (JPEG q75) in equal time, on one page, and what they teach: OQAT with residual
# networks and with MobileNetV3, QFA, DNAS, and ResNet-8 made by hand at nine widths. DATA is a folder with the train and
# test parquet files (columns img, label). HOURS is the time for training each of them but DNAS, whose EPOCHS say how long;
# by default an hour and a half on two cores with AVX2 alone, where training computes in float32.
# Result: docs/analysis.md and results/README.md#five-ways-in-equal-time
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${HOURS:=0.4}" "${EPOCHS:=2}" "${SEED:=0}" "${EVALUATIONS:=30}"
PLACE=runs/five
COMMON="--data $DATA --seed $SEED --validation-fraction 0.05 --calibration-images 1000"
SIDES="--resolutions 16 20 24"
oncequant train oqat $COMMON $SIDES --hours "$HOURS" --run $PLACE/oqat-residual
oncequant search $PLACE/oqat-residual --evaluations "$EVALUATIONS"
oncequant train oqat $COMMON $SIDES --hours "$HOURS" --run $PLACE/oqat-mobilenet --preset cifar
oncequant search $PLACE/oqat-mobilenet --evaluations "$EVALUATIONS"
oncequant train qfa $COMMON $SIDES --hours "$HOURS" --run $PLACE/qfa-residual --preset resnet-cifar
oncequant search $PLACE/qfa-residual --evaluations 100
oncequant train dnas $COMMON --resolutions 16 --run $PLACE/dnas --preset resnet20 --float-epochs "$EPOCHS" \
    --epochs "$EPOCHS" --samples 4 --batch-size 128 --label-smoothing 0 --cost bitops --edge-bits 8
oncequant search $PLACE/dnas
oncequant compare $PLACE/oqat-residual --ways supernet hand-made --front weight_bytes --deployments 9 --bits 4 \
    --evaluations "$EVALUATIONS"
oncequant report $PLACE/oqat-residual $PLACE/oqat-mobilenet $PLACE/qfa-residual $PLACE/dnas --out $PLACE/page
oncequant train qfa --preset nano --run $PLACE/digits-qfa-nano
oncequant search $PLACE/digits-qfa-nano
oncequant analyse $PLACE/oqat-residual
oncequant analyse $PLACE/qfa-residual
oncequant analyse $PLACE/oqat-mobilenet --evaluations 40 --images 1500
oncequant analyse $PLACE/digits-qfa-nano
oncequant analyse $PLACE/dnas
python recipes/collect_analysis.py results/five-runs $PLACE/oqat-residual $PLACE/qfa-residual $PLACE/oqat-mobilenet \
    $PLACE/digits-qfa-nano $PLACE/dnas
cp $PLACE/page/family.csv results/five-runs_networks_cpu_202611.csv
cp $PLACE/page/runs.csv results/five-runs_cpu_202611.csv
cp $PLACE/page/volumes.csv results/five-runs_volumes_cpu_202611.csv
[ -z "$(command -v chromedriver)" ] || python tests/browser.py $PLACE/page/index.html docs/comparison.png
