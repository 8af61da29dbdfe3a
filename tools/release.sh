#!/usr/bin/env bash
# How inference/models was made, and how to make a better one.
set -euo pipefail
usage() {
    cat <<'END'
usage: tools/release.sh train DATA [key=value ...] | publish | registry

  train     DATA holds documents, posters, photos; makes the synthetic documents and captures, and trains, into
            work_dirs/docmetric; stopped or killed, the same command continues. Paths such as pretrained=FILE are from the
            repository's root
  publish   exports and calibrates the model, and copies it into inference/models
  registry  makes the types and captures to try with it, in inference/models

example: tools/release.sh train /data/images pretrained=inference/models/docmetric.pt && tools/release.sh publish
END
}
what=${1:-} root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) out=work_dirs/docmetric models=inference/models
data=${2:-}
if [ "$what" = train ]; then
    for kind in documents posters photos; do
        [ -d "$data/$kind" ] || { echo "error: $data/$kind: no such folder; give the folder that has documents, posters and photos" >&2; exit 2; }
    done
    data=$(realpath "$data")
fi
cd "$root"
python=.venv/bin/python work=work_dirs/docmetric_data
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

held_out() { # every fifteenth image of a folder is kept out of training
    ls "$1" | awk 'NR % 15 == 8'
}

case $what in
train)
    "$python" -m synth $work --train-types 4000 --copies 2 --train-captures 3 --eval-types 200 --captures 4
    for kind in documents posters; do
        "$python" -m synth --photos-of "$data/$kind" --out $work/$kind --copies 2 --severity 1.6
        mkdir -p $work/held/$kind
        for file in $(held_out "$data/$kind"); do
            cp -p "$data/$kind/$file" $work/held/$kind/
            rm -rf "$work/$kind/${file%.*}"
        done
    done
    "$python" -m synth --photos-of $work/held --out $work/validation/real --copies 4 --seed 9 --severity 2
    ln -sfn ../eval $work/validation/made
    "$python" train_v2.py configs/docmetric output=$out resume=auto eval_data=$work/validation \
        data=$work/documents:8:labelled,$work/posters:8:labelled,"$data/photos:1",$work/train:1:labelled "${@:3}" ;;
publish)
    "$python" -m synth --out $work/calibration/made --types 400 --copies 5 --first-type 2000000
    "$python" -m synth --photos-of $work/held --out $work/calibration/real --copies 5 --seed 21 --severity 1.6
    "$python" onnx_export.py $out
    "$python" -m eval --model $out/model.onnx --calibrate $work/calibration
    cp $out/model.onnx $models/docmetric.onnx
    cp $out/model.pt $models/docmetric.pt ;;
registry)
    "$python" -m synth --out $work/registry --types 24 --copies 2
    rm -rf $models/registry $models/photos && mkdir -p $models/registry $models/photos
    types=($work/registry/*/)
    for i in "${!types[@]}"; do # of four types three are registered, and two of these have a capture to try
        name=$(basename "${types[$i]}")
        case $((i % 4)) in
        0) cp "${types[$i]}reference.jpg" "$models/registry/$name.jpg" ;;
        3) cp "${types[$i]}capture_1.jpg" "$models/photos/never_registered_$name.jpg" ;;
        *) cp "${types[$i]}reference.jpg" "$models/registry/$name.jpg"
           cp "${types[$i]}capture_1.jpg" "$models/photos/$name.jpg" ;;
        esac
    done ;;
-h | --help) usage ;;
*) usage >&2; exit 2 ;;
esac
