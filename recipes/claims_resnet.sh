#!/bin/sh
# Claims C1 to C8 (docs/claims.md) with the default residual networks: preset resnet-cifar, Muon, CIFAR-10 (JPEG q75). DATA is
# a folder with the train and test parquet files (columns img, label). PARTS picks claims, SEEDS seeds. The scale is one at
# which C1 to C3 take half an hour a seed on one core without bfloat16; at full length IMAGES=50000 EPOCHS=8 SIDES="24 28 32".
# Float stages train by the sandwich rule where subnets in float are compared. Every part resumes after a kill.
# Result: docs/claims.md
set -e
export OMP_NUM_THREADS=1
: "${DATA:?set DATA to the folder of parquet files}" "${SEEDS:=0 1 2}" "${PARTS:=oqat compare quantizers uniform predictor dnas}"
: "${IMAGES:=10000}" "${EPOCHS:=2}" "${SIDES:=16 20}" "${ALONE:=3}"
PLACE=runs/claims-resnet
NAME=results/cifar10-jpeg75_resnet
NETWORK="--preset resnet-cifar --resolutions $SIDES --depths 1"
TRAIN="--optimizer muon --batch-size 128 --max-train $IMAGES --float-epochs $((2 * EPOCHS)) --epochs $EPOCHS --min-steps 0"
for part in $PARTS; do
    case $part in
    oqat) # C1, C2, C3
        for seed in $SEEDS; do
            python recipes/oqat_claims.py --data "$DATA" --out $PLACE/oqat --seed "$seed" --random-archs 5 --alone "$ALONE" \
                $NETWORK $TRAIN
        done
        python recipes/oqat_claims.py --out $PLACE/oqat --summarise ${NAME}-oqat-claims_cpu_202611.csv
        ;;
    compare) # C4
        for seed in $SEEDS; do
            oncequant train --data "$DATA" --run "$PLACE/compare-$seed" --seed "$seed" --float-sandwich $NETWORK $TRAIN
            oncequant compare "$PLACE/compare-$seed" --bits 2 --deployments 40 \
                --ways supernet nas-then-quantize search-then-retrain uniform
        done
        python recipes/collect_compare.py ${NAME}-compare_cpu_202611.csv $PLACE/compare-*/compare.json
        ;;
    quantizers | uniform) # C5, C8
        for seed in $SEEDS; do
            python recipes/qfa_claims.py --data "$DATA" --out "$PLACE/$part" --part $part --seed "$seed" --random-archs 3 \
                --mixed 6 $NETWORK $TRAIN
        done
        python recipes/qfa_claims.py --out "$PLACE/$part" --part $part --summarise "${NAME}-qfa-${part}_cpu_202611.csv"
        ;;
    predictor) # C6
        for seed in $SEEDS; do
            oncequant train qfa --data "$DATA" --run "$PLACE/qfa-$seed" --seed "$seed" $NETWORK $TRAIN
        done
        python recipes/qfa_predictor.py $PLACE/qfa-* --measured 700 --out ${NAME}-qfa-predictor_cpu_202611.csv
        ;;
    dnas) # C7; its networks are residual anyway
        DATA="$DATA" SEEDS="$SEEDS" sh recipes/dnas_cifar10.sh
        ;;
    *)
        echo "PARTS: $part is none of oqat, compare, quantizers, uniform, predictor, dnas" >&2
        exit 2
        ;;
    esac
done
