#!/usr/bin/env bash
# Fills the tables of docs/figures.md for this machine, GPUs included, in one call; about 20 minutes on 16 cores:
#   bash tools/figures.sh PHOTOS [OUTPUT]      PHOTOS: JPEG files named after their class (cat.1.jpg), 1,000 or more
# Takes the environment that demo.sh or test.sh made, or PYTHON=... where TensorFlow came another way.
set -uo pipefail
photos=$(cd "${1:?a folder of photographs}" && pwd) output=${2:-figures}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
mkdir -p "$output"
output=$(cd "$output" && pwd)
export TF_FORCE_GPU_ALLOW_GROWTH=true PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

step() { # name of the log, command
    echo "== $1: ${*:2}"
    "${@:2}" 2>&1 | tee "$output/$1.txt"
}

tool() { # name of the log, tool, arguments
    step "$1" "$python" "tools/$2.py" "${@:3}"
}

step machine "$python" -c "
import os, tensorflow as tf
from tfpipe.pipeline import arithmetic
print(os.cpu_count(), 'cores;', *arithmetic.places(), '; TensorFlow', tf.__version__)"
for workers in 1 4 16; do
    tool "build-$workers" benchmark build --files=20000 --workers="$workers" --repetitions=3
done
tool cores benchmark cores --input="$photos" --num_images=7680 --repetitions=3
tool data build_tfrecords --input="$photos" --output="$output/shards" --name=figures --layout=filename --splits=train=0.7,val=0.15,test=0.15
common=(--data="$output/shards" --backbone=vgg16 --weights=none)
tool modes benchmark modes --data="$output/shards" --weights=none --epochs=20 --only=bottleneck
tool profile train "${common[@]}" --output="$output/run" --mode=finetune --unfreeze=block5 --nocache_prefix --pooling=average --profile_steps=100
tool overhead benchmark overhead --data="$output/shards" --weights=none --image_size=96
tool evaluate evaluate --model="$output/run" --data="$output/shards" --split=test --output="$output/eval"
tool export export_model --model="$output/run" --output="$output/export" --formats=saved_model,pb,tflite,onnx
step tests "$python" -m pytest -q -n auto --maxprocesses=16 --dist loadfile -rfEs tests
