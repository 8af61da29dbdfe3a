#!/usr/bin/env bash
# How to make the models in inference/models again, and better ones. The card there says how the runs of the shipped ones differed.
set -euo pipefail
types=40000 clean=1 captures=1          # synthetic types; of each so many clean copies and synthetic captures
held_types=200                          # further synthetic types, to validate on
most=6500 most_logos=1500               # images taken of one folder of real images, of one folder of logos
views=1                                 # classes of a real image that is no logo or photograph; 8: turned and mirrored, too
scenes=20000 held_scenes=1000           # for the finder
lines=40000                             # synthetic lines, for the reader
photographs="photos bsds caltech101"
logos="airline-logos appimage carlogos electronapps footlogos region-flags selfhst ticker-icons tvlogos"
flat="documents posters games posters-imdb tables mag-banknotes xwing mattermost"    # of these the finder's documents are made
usage() {
    cat <<'END'
usage: tools/release.sh train DATA [key=value ...] | publish | finder DATA [key=value ...] | reader DATA [key=value ...] | registry

  train     DATA holds documents, posters, photos, and further folders of images in DATA/train; makes the synthetic documents
            and captures, and trains, into work_dirs/docmetric. Paths such as pretrained=FILE are from the repository's root
  publish   exports and calibrates the model, and copies it into inference/models
  finder    makes scenes of DATA's images, trains the finder, into work_dirs/docmetric_finder, exports and copies it
  reader    DATA holds fonts (DATA/fonts), texts (DATA/text/*.txt) and transcribed lines (DATA/lines); makes synthetic lines, trains
            the reader on them, into work_dirs/docmetric_reader, goes on with the transcribed ones, exports and copies it
  registry  makes the types and captures to try with it, in inference/models

train, finder and reader, stopped or killed, continue with the same command.

example: tools/release.sh train /data/images pretrained=inference/models/docmetric.pt && tools/release.sh publish
END
}
what=${1:-} root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) models=inference/models
out=work_dirs/docmetric finder=work_dirs/docmetric_finder reader=work_dirs/docmetric_reader work=work_dirs/docmetric_data
data=${2:-}
needs=
case $what in train | finder) needs="documents posters photos" ;; reader) needs="fonts text lines" ;; esac
for kind in $needs; do
    [ -d "$data/$kind" ] || { echo "error: $data/$kind: no such folder; give the folder that has $needs" >&2; exit 2; }
done
[ -z "$needs" ] || data=$(realpath "$data")
cd "$root"
python=.venv/bin/python
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

among() { # among WORD "WORDS"
    [[ " $2 " = *" $1 "* ]]
}

evenly() { # evenly FOLDER MOST: the paths of at most so many images, spread over the folder
    find "$1" -type f | LC_ALL=C sort | awk -v most="$2" '{ line[NR] = $0 }
        END { if (most > NR) most = NR; for (i = 0; i < most; i++) print line[int(i * NR / most) + 1] }'
}

link_real() { # $work/real/KIND/FOLDER: links to the images to train on; $work/held/KIND/FOLDER: every fifteenth, kept out
    rm -rf $work/real $work/held
    local folder name kind number
    for folder in "$data"/documents "$data"/posters "$data"/photos "$data"/train/*/; do
        [ -d "$folder" ] || continue
        name=$(basename "$folder") kind=designs number=$most
        if among "$name" "$photographs"; then kind=photographs; fi
        if among "$name" "$logos"; then kind=logos number=$most_logos; fi
        mkdir -p $work/{real,held}/$kind/"$name"
        evenly "$folder" "$number" | awk 'NR % 15 != 8' | xargs -d '\n' ln -s -t $work/real/$kind/"$name"
        evenly "$folder" "$number" | awk 'NR % 15 == 8' | xargs -r -d '\n' ln -s -t $work/held/$kind/"$name"
    done
}

folders() { # folders ROOT "NAMES": those of ROOT/KIND/NAME that exist
    local name
    for name in $2; do
        find "$1" -mindepth 2 -maxdepth 2 -name "$name"
    done
}

case $what in
train)
    link_real
    "$python" -m synth $work --train-types $types --copies $clean --train-captures $captures --eval-types $held_types --captures 4
    for kind in designs logos; do
        "$python" -m synth --photos-of $work/real/$kind --out $work/$kind --copies 3 --severity 1.6
    done
    "$python" -m synth --photos-of $work/held --out $work/validation/real --copies 4 --seed 9 --severity 2
    ln -sfn ../eval $work/validation/made
    "$python" train_v2.py configs/docmetric output=$out resume=auto eval_data=$work/validation \
        data=$work/designs:$views:labelled,$work/logos:1:labelled,$work/real/photographs:1,$work/train:1:labelled "${@:3}" ;;
publish) # Thresholds are for documents that differ: of each synthetic family one type, and real images that are no logos. Types that
    # look alike on purpose would decide them alone; in a registry, such types raise each other's thresholds.
    families=$("$python" -c "from synth.families import FAMILIES; print(len(FAMILIES))")
    "$python" -m synth --out $work/calibration/made --types "$families" --copies 5 --first-type 2000000
    "$python" -m synth --photos-of $work/held/designs --out $work/calibration/real --copies 5 --seed 21 --severity 1.6
    "$python" onnx_export.py $out
    "$python" -m eval --model $out/model.onnx --calibrate $work/calibration
    cp $out/model.onnx $models/docmetric.onnx
    cp $out/model.pt $models/docmetric.pt ;;
finder)
    link_real
    make() { # make FOLDER NUMBER SEED real|held FIRST_TYPE
        mapfile -t documents < <(folders "$work/$4" "$flat")
        "$python" -m synth --scenes "$1" --number "$2" --seed "$3" --first-type "$5" --documents "${documents[@]}" \
            --backgrounds "$work/$4/photographs"
    }
    make $work/scenes $scenes 0 real 0
    make $work/held_scenes $held_scenes 1 held 1000000
    "$python" train_v2.py configs/finder output=$finder resume=auto data=$work/scenes boxes=$work/scenes/corners.json \
        eval_data=$work/held_scenes eval_boxes=$work/held_scenes/corners.json "${@:3}"
    "$python" onnx_export.py $finder
    cp $finder/model.onnx $models/finder.onnx ;;
reader)
    "$python" -m ocr lines --out $work/lines --count $lines --fonts "$data/fonts" --text "$data"/text/*.txt
    "$python" train_v2.py configs/read data=$work/lines output=$reader resume=auto "${@:3}"
    "$python" train_v2.py configs/read_tune data=$work/lines lines="$data/lines" pretrained=$reader/model.pt output=${reader}_tuned \
        resume=auto max_steps=1000
    "$python" onnx_export.py ${reader}_tuned --fp16
    cp ${reader}_tuned/model.onnx $models/reader.onnx
    "$python" - ${reader}_tuned/model.pt $models/reader.pt <<'END' ;; # in 16 bits, as the ONNX file
import sys, torch
weights = torch.load(sys.argv[1], weights_only=True)
torch.save({name: value.half() if value.is_floating_point() else value for name, value in weights.items()}, sys.argv[2])
END
registry)
    "$python" -m synth --out $work/registry --types 24 --copies 2
    rm -rf $models/registry $models/photos && mkdir -p $models/registry $models/photos
    registered=($work/registry/*/)
    for i in "${!registered[@]}"; do # of four types three are registered, and two of these have a capture to try
        name=$(basename "${registered[$i]}")
        case $((i % 4)) in
        0) cp "${registered[$i]}reference.jpg" "$models/registry/$name.jpg" ;;
        3) cp "${registered[$i]}capture_1.jpg" "$models/photos/never_registered_$name.jpg" ;;
        *) cp "${registered[$i]}reference.jpg" "$models/registry/$name.jpg"
           cp "${registered[$i]}capture_1.jpg" "$models/photos/$name.jpg" ;;
        esac
    done ;;
-h | --help) usage ;;
*) usage >&2; exit 2 ;;
esac
