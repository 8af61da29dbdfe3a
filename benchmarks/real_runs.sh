#!/usr/bin/env bash
# The real runs of benchmarks/RESULTS.md.
set -euo pipefail
usage() {
    cat <<'END'
usage: benchmarks/real_runs.sh cpu|two|gpu DATA
       benchmarks/real_runs.sh start DATA [WEIGHTS.pt]

DATA holds the folders documents, photos, posters (to train on) and covers (to evaluate on).
  cpu     one process, 5,606 images x 1, then covers, export, classify
  two     two gloo processes, documents x 24, 14,544 classes
  start   102,400 samples from the same WEIGHTS (default: inference/models/docmetric.pt): the reference's recipe, with the
          rate of its training, with that of its fine-tuning, and ours
  gpu     the reference's recipe and the stronger one, side by side, the same time each
END
}
case ${1:-} in
-h | --help) usage; exit ;;
cpu | two | gpu | start) [ $# -ge 2 ] || { usage >&2; exit 2; } ;;
*) usage >&2; exit 2 ;;
esac
what=$1 data=$(realpath "$2") python=.venv/bin/python
weights=$(realpath "${3:-$(dirname "${BASH_SOURCE[0]}")/../inference/models/docmetric.pt}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
all=$data/documents,$data/photos,$data/posters

evaluate() { "$python" -m eval --model "$1" --data "$data/covers" --report "$1/report"; }

case $what in
cpu)
    out=work_dirs/real_cpu
    time "$python" train_v2.py configs/lcnet_strong data="$all" expansion=1 batch_size=256 max_steps=3600 \
        lr=8e-3 s=32 m=0.3 save_every=600 log_every=50 output=$out
    evaluate $out
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
    evaluate $out ;;
start)
    out=work_dirs/start
    "$python" -m synth $out/synthetic --train-types 2000 --copies 2 --train-captures 1 --eval-types 200 --captures 4
    run() {
        "$python" train_v2.py "configs/$2" compile=true log_every=50 pretrained="$weights" output=$out/"$1" \
            data="$data/documents:8,$data/posters:8,$data/photos:1,$out/synthetic/train:1:labelled" "${@:3}"
        "$python" -m eval --model $out/"$1" --data $out/synthetic/eval
    }
    run reference lcnet_cos_squeeze_lbn max_steps=200
    run reference_finetuning lcnet_cos_squeeze_lbn max_steps=200 lr=1e-4 centres_lr=1e-4
    run ours docmetric max_steps=400 ;;
gpu)
    for recipe in lcnet_cos lcnet_strong; do
        out=work_dirs/real_gpu_$recipe
        time "$python" train_v2.py configs/$recipe data="$all" expansion=24 pretrained=false batch_size=1024 \
            epochs=40 output=$out
        evaluate $out
    done ;;
esac
