#!/usr/bin/env bash
# DocMetric: first run and tests. Usage:
#   ./run.sh            sets up .venv; shows the shipped model at work; then the training demo (CPU, minutes): draws documents,
#                       trains, exports, evaluates, registers, classifies. Everything it makes lies in work_dirs/demo
#   ./run.sh test       sets up .venv; runs the tests; further words go to pytest, for example: ./run.sh test tests/test_losses.py
#   ./run.sh --help     shows this
# Needs bash, Python 3.10 or newer with venv, 12 GB of disk, and a network the first time. No root, any folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=.venv/bin/python

fail() { echo "error: $1" >&2; exit 2; }

setup() { # .venv holds what requirements.txt names; a stamp in it says for which requirements.txt
    local wanted stamp=.venv/.requirements
    wanted=$(cksum < requirements.txt)
    if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "python3 must be Python 3.10 or newer; install one"
    echo "setting up .venv: one to three minutes with a fast network; 10 GB of disk while it installs, 7 GB afterwards" >&2
    python3 -m venv .venv >/dev/null || fail "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv"
    quietly install -r requirements.txt
    if ! "$PYTHON" -c "import cv2" 2>/dev/null; then
        echo "opencv-python does not import here (no libGL or glib); opencv-python-headless takes its place" >&2
        quietly uninstall --yes opencv-python
        quietly install --force-reinstall --no-deps opencv-python-headless # rapidocr may have brought it: half is gone now
        "$PYTHON" -c "import cv2"
    fi
    echo "$wanted" > "$stamp"
}

quietly() { # pip with these words: one line of progress; its own words are shown only if it fails
    local log=.venv/pip.log started=$SECONDS pip status=0 every=15 line
    if [ -t 2 ]; then every=1; fi
    mkdir -p .venv/tmp # where pip unpacks: beside what it installs, since /tmp may be small
    TMPDIR=$PWD/.venv/tmp "$PYTHON" -m pip "$@" --disable-pip-version-check --no-input --progress-bar off >"$log" 2>&1 &
    pip=$!
    trap 'kill $pip 2>/dev/null; exit 130' INT TERM
    while kill -0 $pip 2>/dev/null; do
        sleep 1
        if (((SECONDS - started) % every)); then continue; fi
        line="pip: $((SECONDS - started)) s, $( (du -sm .venv 2>/dev/null || true) | cut -f1) MB in .venv"
        if [ -t 2 ]; then printf '\r%s ' "$line" >&2; else echo "$line" >&2; fi
    done
    wait $pip || status=$?
    trap - INT TERM
    if [ -t 2 ]; then printf '\n' >&2; fi
    rm -rf .venv/tmp
    if ((status)); then
        cat "$log" >&2
        fail "pip $1 failed; its words are above and in $log. Check the network and the disk, then run ./run.sh again"
    fi
}

first_look() {
    echo "== first look: the shipped model classifies 18 captures that it never saw, against one image of each of 18 types;" >&2
    echo "   12 show a registered type, 6 a type that was never registered, as the names of the files say" >&2
    "$PYTHON" -m tools.first_look --out work_dirs/demo/first_look.png
}

demo() {
    local out=work_dirs/demo types captured=() started=$SECONDS
    say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)) >&2; }
    printf '\n== training demo: a new model from nothing; Ctrl-C stops it\n' >&2
    "$PYTHON" -m tools.demo_time --types 800 --copies 3
    say "1/6 synthetic documents: 800 types to train on, 60 others to evaluate on"
    "$PYTHON" -m synth $out/data --train-types 800 --copies 3 --eval-types 60 --captures 4
    say "2/6 training"
    "$PYTHON" train_v2.py configs/demo eval_data=$out/data/eval
    say "3/6 export"
    "$PYTHON" onnx_export.py $out
    say "4/6 evaluation on types and captures never trained on"
    "$PYTHON" -m eval --model $out/model.onnx --data $out/data/eval --report $out/report
    say "5/6 registering one clean image of each of the first 40 evaluation types"
    rm -rf $out/register && mkdir -p $out/register
    types=($out/data/eval/*/)
    for type in "${types[@]:0:40}"; do cp "${type}reference.jpg" "$out/register/$(basename "$type").jpg"; done
    say "6/6 classifying captures: six of registered types, then three of types never registered"
    for i in 0 5 13 21 30 39 42 50 58; do captured+=("${types[$i]}capture_1.jpg"); done
    "$PYTHON" inference/classify.py --model $out/model.onnx --register $out/register --fpr 1e-2 "${captured[@]}"
    say "done: $out/report/report.html; the first look: $out/first_look.png"
}

case "${1:-demo}" in
demo | test) ;;
-h | --help | help) sed -n '2,/^set /{/^#/s/^# \?//p}' run.sh; exit ;;
*) fail "$1: not known; use ./run.sh, ./run.sh test or ./run.sh --help" ;;
esac
setup
# glibc gives large buffers back to the kernel at every step and takes them again; keeping them nearly doubles a CPU's speed.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
# A thread that waits for another spins. On cores that other programs use too, the other may not even be running: a training step
# took 1 to 4 s on two such cores with libgomp's default of 300,000 turns and 0.2 to 0.8 s with this. On free cores it costs 3 %.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
if [ "${1:-demo}" = test ]; then # files are shared among as many processes as there are cores; four take 3 GB
    cores=$(getconf _NPROCESSORS_ONLN)
    exec "$PYTHON" -m pytest -n $((cores < 4 ? cores : 4)) --dist loadfile "${@:2}"
fi
first_look
demo
