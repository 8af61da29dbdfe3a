#!/usr/bin/env bash
# Builds an image of this folder and runs it, without a container service: Debian's buildah and mmdebstrap, as root. Usage:
#   containers/build.sh serve     the server: built, started, used over HTTP; two minutes, 4 GB of disk
#   containers/build.sh train     training: built, a few steps on synthetic documents; six minutes, 35 GB of disk; with TMPDIR on
#                                 another disk (or in 12 GB of memory, /dev/shm) 20 GB
#   containers/build.sh export    the same, then the export image: the run of those steps is exported
# KEEP=FOLDER keeps the images there; otherwise all is removed at the end. Elsewhere this is all it takes:
#   docker build -f containers/Dockerfile.serve -t docmetric-serve .
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $1" >&2; exit 2; }
say() { printf '== %s (%d s)\n' "$1" $SECONDS >&2; }

case "${1:-}" in
serve | train | export) ;;
-h | --help) sed -n '2,/^set /{/^#/s/^# \?//p}' "$0"; exit ;;
*) fail "${1:-no image}: use containers/build.sh serve, train or export; --help says more" ;;
esac
for program in buildah mmdebstrap; do
    command -v $program >/dev/null || fail "$program is not installed; on Debian: apt-get install buildah mmdebstrap"
done
[ "$(id -u)" = 0 ] || fail "only root can make the root file system of an image here"

work=${KEEP:-$(mktemp -d)}
mkdir -p "$work/pip"
# overlay keeps a layer as a difference; vfs, where the kernel has no overlay, as a whole copy: then none but the last is kept.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-overlay}
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }
buildah info >/dev/null 2>&1 || STORAGE_DRIVER=vfs
layers=
[ "$STORAGE_DRIVER" = vfs ] || layers=--layers # a RUN whose inputs are the same is not run again
clean() {
    [ -z "${server:-}" ] || { kill "$server" 2>/dev/null && wait "$server" || true; }
    buildah rm --all >/dev/null 2>&1 || true
    if [ -z "${KEEP:-}" ]; then buildah rmi --all --force >/dev/null 2>&1 || true; rm -rf "$work"; fi
}
trap clean EXIT

# What this machine's pip is told (certificates, folders of wheels) holds for the pip in a build too, and stays out of the image.
settings=$work/pip/pip.conf
told() { python3 -m pip config list 2>/dev/null | sed -nE "s/^(global|:env:)\.($1)='(.*)'$/\2 = \3/p" | sort -u; }
{ echo "[global]"; told 'find-links|index-url|extra-index-url|proxy|trusted-host'; } > "$settings"
mounts=(--volume "$settings:/etc/pip.conf:ro")
for place in $(grep -oE '(file://|= *)/[^ ]+' "$settings" | grep -oE '/[^/].*' | sed 's,/simple$,,' | sort -u); do
    [ ! -e "$place" ] || mounts+=(--volume "$place:$place:ro")
done
certificates=$(told cert | sed 's/.* = //; q')
if [ -n "$certificates" ]; then
    cp "$certificates" "$work/pip/certificates.pem"
    echo "cert = /run/certificates.pem" >> "$settings"
    mounts+=(--volume "$work/pip/certificates.pem:/run/certificates.pem:ro")
fi

base() { # debian:bookworm-slim from Debian's own packages
    if buildah inspect --type image debian:bookworm-slim >/dev/null 2>&1; then return; fi
    say "the base image"
    mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$work/base.tar"
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/base.tar" / >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd bash "$container"
    buildah commit --quiet --rm "$container" debian:bookworm-slim >/dev/null
    rm "$work/base.tar"
}

image() { # builds containers/Dockerfile.NAME as docmetric-NAME
    say "the image docmetric-$1"
    buildah build --format docker --pull-never $layers --ignorefile .dockerignore "${mounts[@]}" \
        --file "containers/Dockerfile.$1" --tag "docmetric-$1" . >"$work/build.log" 2>&1 ||
        { cat "$work/build.log" >&2; fail "docmetric-$1 cannot be built; what buildah said is above"; }
    local user
    user=$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "docmetric-$1")
    [ "$user" = 10001 ] || fail "docmetric-$1 runs as user ${user:-root}"
    say "docmetric-$1: $(buildah images --format '{{.Size}}' "docmetric-$1" | head -1)"
}

serve() {
    image serve
    container=$(buildah from --pull-never docmetric-serve)
    inside() { buildah run "$container" -- "$@"; } # /store is a volume of this container
    [ "$(inside id -u)" = 10001 ] || fail "the container's user is not 10001"
    ! inside sh -c 'command -v pip || command -v gcc' || fail "the image holds tools that the server does not need"
    ! inside python -c 'import torch' 2>/dev/null || fail "the image holds PyTorch"
    say "a store, a key, the server"
    local files=/opt/docmetric/lib/python3*/site-packages/docmetric/models port=18080 url key answer
    url=http://127.0.0.1:$port
    inside docmetric init /store
    ! inside docmetric serve /store --host 0.0.0.0 --port $port 2>"$work/refused" || fail "it serves all networks without a key"
    grep -q '^error: ' "$work/refused" || fail "serve without a key said: $(cat "$work/refused")"
    key=$(inside docmetric key add /store check --scopes admin --json | sed -nE 's/.*"key": "(dm_[^"]*)".*/\1/p')
    inside docmetric serve /store --host 0.0.0.0 --port $port &
    server=$!
    for _ in $(seq 100); do ! healthy $port || break; kill -0 $server 2>/dev/null || fail "the server ended"; sleep 0.2; done
    healthy $port || fail "the server does not answer its health check"
    say "registering an image and classifying a capture of it over HTTP"
    asked() { inside env DOCMETRIC_KEY="$key" sh -c "$1"; }
    asked "docmetric add $url $files/registry/passport_1000021.jpg --type passport"
    answer=$(asked "docmetric classify $url $files/photos/passport_1000021.jpg $files/photos/never_registered_form_1000023.jpg")
    echo "$answer"
    grep -q 'passport_1000021.jpg: passport ' <<<"$answer" && grep -q 'form_1000023.jpg: not registered ' <<<"$answer" ||
        fail "the answers are wrong"
    ! inside docmetric ls $url 2>/dev/null || fail "it answers without a key"
    say "the server is stopped"
    inside sh -c 'kill -TERM $(cat /proc/[0-9]*/stat 2>/dev/null | grep -m1 "(docmetric)" | cut -d" " -f1)'
    wait $server || fail "it did not end well"
    server=
}

healthy() { # the health check of the image, on another port
    local check
    check=$(buildah inspect --type image --format '{{index .Docker.Config.Healthcheck.Test 3}}' docmetric-serve)
    inside python -c "${check//8080/$1}" 2>/dev/null
}

train() {
    image train
    container=$(buildah from --pull-never docmetric-train)
    inside() { buildah run --volume "$work/output:/output" "$container" -- "$@"; }
    rm -rf "$work/output"
    install -d -o 10001 -g 10001 "$work/output"
    [ "$(inside id -u)" = 10001 ] || fail "the container's user is not 10001"
    say "three steps"
    inside python -m synth /output/data --train-types 8 --copies 2 --eval-types 4 --captures 2
    inside python train_v2.py configs/demo data=/output/data/train eval_data=/output/data/eval output=/output/run max_steps=3 \
        batch_size=16 device=cpu num_workers=1
    buildah rm "$container" >/dev/null
}

export_() {
    train
    image export
    container=$(buildah from --pull-never docmetric-export)
    say "the export"
    buildah run --volume "$work/output:/output" "$container" -- python onnx_export.py /output/run
    [ -s "$work/output/run/model.onnx" ] || fail "no model was written"
}

base
case $1 in
serve) serve ;;
train) train ;;
export) export_ ;;
esac
say "done"
