#!/usr/bin/env bash
# The loaders that `flcache bench loader` compares with: `bash tests/benchmarks/make_rivals_env.sh DIR`.
# In an environment of their own: mosaicml-streaming wants transformers below 5, flcache 5.5 or later.
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install -q "torch>=2.8,<2.14" "torchvision>=0.23,<0.29" "litdata>=0.2.50" "mosaicml-streaming>=0.11"
echo "now: flcache bench loader --rivals $1/bin/python"
