#!/usr/bin/env bash
# Makes inference/models/registry (18 made types, one clean picture each) and inference/models/photos (made photos to try:
# one of each of 12 registered types, then of 6 types that are not registered). All of types that no training set has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
made=$(mktemp -d) models=inference/models
trap 'rm -rf "$made"' EXIT
.venv/bin/python -m synth --out "$made/set" --types 24 --copies 2
rm -rf $models/registry $models/photos && mkdir -p $models/registry $models/photos
types=("$made"/set/*/)
for i in "${!types[@]}"; do
    name=$(basename "${types[$i]}")
    if [ $((i % 4)) -lt 3 ]; then
        cp "${types[$i]}reference.jpg" "$models/registry/$name.jpg"
        [ $((i % 4)) = 0 ] || cp "${types[$i]}capture_1.jpg" "$models/photos/$name.jpg"
    else
        cp "${types[$i]}capture_1.jpg" "$models/photos/never_registered_$name.jpg"
    fi
done
