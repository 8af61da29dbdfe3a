#!/usr/bin/env bash
# The real runs of benchmarks/RESULTS.md. DATA holds the folders documents, photos, posters (to train on) and covers (to judge by).
#   benchmarks/real_runs.sh cpu DATA     one process, 5,606 images x 1, then covers, export, classify
#   benchmarks/real_runs.sh two DATA     two gloo processes, documents x 24, 14,544 classes
#   benchmarks/real_runs.sh start DATA PROTOTYPE.pt    102,400 samples from the same weights: the reference's recipe, with the
#                                        rate of its training, with that of its fine-tuning, and ours
#   benchmarks/real_runs.sh gpu DATA     the reference's recipe and the stronger one, side by side, the same time each
set -euo pipefail
what=$1 data=$(realpath "$2") prototype=${3:+$(realpath "$3")} python=.venv/bin/python
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
all=$data/documents,$data/photos,$data/posters

judge() { "$python" -m eval --model "$1" --data "$data/covers" --report "$1/report"; }

case $what in
cpu)
    out=work_dirs/real_cpu
    time "$python" train_v2.py configs/lcnet_strong data="$all" expansion=1 batch_size=256 max_steps=3600 \
        lr=8e-3 s=32 m=0.3 save_every=600 log_every=50 output=$out
    judge $out
    "$python" onnx_export.py $out
    rm -rf $out/register && mkdir -p $out/register
    for type in "$data"/covers/*/; do cp "$type/reference.jpg" "$out/register/$(basename "$type").jpg"; done
    "$python" inference/classify.py --model $out/model.onnx --register $out/register --threshold 0.7 --top-k 3 \
        "$data"/covers/007/{canon,droid,e63,palm}.jpg ;;
two)
    out=work_dirs/real_two
    time "$python" -m torch.distributed.run --standalone --nproc_per_node=2 train_v2.py configs/lcnet_strong \
        data="$data/documents" expansion=24 batch_size=256 max_steps=600 lr=3e-3 s=16 m=0.2 \
        device=cpu output=$out
    judge $out ;;
start)
    out=work_dirs/start
    "$python" -m synth $out/made --train-types 2000 --copies 2 --train-captures 1 --eval-types 200 --captures 4
    "$python" benchmarks/prototype.py "$prototype" $out/prototype.pt
    run() {
        "$python" train_v2.py "configs/$2" data="$data/documents:8,$data/posters:8,$data/photos:1,$out/made/train:1:labelled" \
            pretrained=$out/prototype.pt compile=true log_every=50 output=$out/"$1" "${@:3}"
        "$python" -m eval --model $out/"$1" --data $out/made/eval
    }
    run reference lcnet_cos_squeeze_lbn max_steps=200
    run reference_finetuning lcnet_cos_squeeze_lbn max_steps=200 lr=1e-4 centres_lr=1e-4
    run ours docmetric max_steps=400 ;;
gpu)
    for recipe in lcnet_cos lcnet_strong; do
        out=work_dirs/real_gpu_$recipe
        time "$python" train_v2.py configs/$recipe data="$all" expansion=24 pretrained=false batch_size=1024 \
            epochs=40 output=$out
        judge $out
    done ;;
*) echo "usage: benchmarks/real_runs.sh cpu|two|gpu DATA | start DATA PROTOTYPE.pt" >&2; exit 2 ;;
esac
