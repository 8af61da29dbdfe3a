#!/usr/bin/env bash
# ./run.sh          sets up .venv, then the demo: make documents, train, evaluate, export, register, classify (CPU, minutes)
# ./run.sh test     sets up .venv, then the tests; further words go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=.venv/bin/python

setup() {
    local wanted stamp=.venv/.requirements
    wanted=$(cksum < requirements.txt)
    if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    echo "setting up .venv (about a minute and 5.5 GB the first time)" >&2
    python3 -m venv .venv || { echo "error: python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    if ! "$PYTHON" -c "import cv2" 2>/dev/null; then
        echo "opencv-python does not import here (no libGL or glib); taking opencv-python-headless instead" >&2
        "$PYTHON" -m pip uninstall --quiet --yes opencv-python
        "$PYTHON" -m pip install --quiet --disable-pip-version-check opencv-python-headless
        "$PYTHON" -c "import cv2"
    fi
    echo "$wanted" > "$stamp"
}

demo() {
    local out=work_dirs/demo types captured=() started=$SECONDS
    say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)) >&2; }
    say "1/6 documents: 800 types to train on, 60 others to evaluate on"
    "$PYTHON" -m synth $out/data --train-types 800 --copies 3 --eval-types 60 --captures 4
    say "2/6 training"
    "$PYTHON" train_v2.py configs/demo eval_data=$out/data/eval
    say "3/6 evaluation on types and captures never trained on"
    "$PYTHON" -m eval --model $out --data $out/data/eval --report $out/report
    say "4/6 export"
    "$PYTHON" onnx_export.py $out
    say "5/6 registering one clean picture of each of the first 40 evaluation types"
    rm -rf $out/register && mkdir -p $out/register
    types=($out/data/eval/*/)
    for type in "${types[@]:0:40}"; do cp "${type}reference.jpg" "$out/register/$(basename "$type").jpg"; done
    say "6/6 classifying captures: six of registered types, then three of types never registered"
    for i in 0 5 13 21 30 39 42 50 58; do captured+=("${types[$i]}capture_1.jpg"); done
    "$PYTHON" inference/classify.py --model $out/model.onnx --register $out/register --fpr 1e-2 "${captured[@]}"
    say "done: $out/report/report.html"
}

case "${1:-demo}" in demo | test) ;; *) echo "error: $1: not known; use ./run.sh or ./run.sh test" >&2; exit 2 ;; esac
setup
# glibc gives large buffers back to the kernel at every step and takes them again; keeping them nearly doubles a CPU's speed.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
if [ "${1:-demo}" = test ]; then exec "$PYTHON" -m pytest "${@:2}"; fi
demo
