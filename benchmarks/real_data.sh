#!/usr/bin/env bash
# The bundle on real scans by overrides alone: train, evaluate, and evaluate the atlas labels carried over by alignment.
#
#   benchmarks/real_data.sh STUDY DATA OUT [OVERRIDES OF THE TRAINING]
#
# STUDY is malc2012 or hippocampus, DATA the folder that holds its images/ and labels/, OUT where results go.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
study=$1 data=$2 out=$3
shift 3
bundle=$here/bundles/whole_brain_lcs_segmentation
common=(--bundle_root "$bundle" --dataset_dir "$data" --datalist "$here/benchmarks/splits/$study.json")
case $study in
    malc2012)
        common+=(--atlas_image "$data/images/1000.nii.gz" --atlas_labels "$data/labels/1000.nii.gz")
        common+=(--label_table "$data/labels.csv")
        upsample=2 network=(--spacing "[2,2,2]" --channels "[8,16,32,64]" --prior_logit 2.0)
        training=(--labels_per_image 8 --learning_rate 0.002 --epochs 60 --val_interval 20)
        ;;
    hippocampus)
        common+=(--atlas_image "$data/images/hippocampus_001.nii.gz" --atlas_labels "$data/labels/hippocampus_001.nii.gz")
        common+=(--label_table "$here/benchmarks/splits/hippocampus.tsv")
        upsample=1 network=(--spacing "[1,1,1]" --channels "[16,32,64,128]" --prior_logit 2.0)
        training=(--labels_per_image 2 --learning_rate 0.002 --epochs 10 --val_interval 5)
        ;;
    *)
        echo "STUDY must be malc2012 or hippocampus, got $study" >&2
        exit 2
        ;;
esac
evaluate="['$bundle/configs/inference.json','$bundle/configs/evaluate.json']"
run() { python -m monai.bundle run "${common[@]}" "$@"; }

time run --config_file "$bundle/configs/train.json" "${network[@]}" "${training[@]}" \
    --ckpt_dir "$out/model" --output_dir "$out/model" "$@"
run --config_file "$evaluate" --upsample "$upsample" --checkpoint "$out/model/model.pt" --output_dir "$out/lcs"
# Alignment alone needs no network's grid: it is scored at the scans' own 1 mm
run --config_file "$evaluate" --spacing "[1,1,1]" --upsample 1 --checkpoint "" --output_dir "$out/alignment" \
    --inferer "{'_target_': 'monai_lcs.inferers.AtlasLabelInferer'}"
python -m monai_lcs.tables "label conditioned=$out/lcs/dice.tsv" "alignment only=$out/alignment/dice.tsv"
