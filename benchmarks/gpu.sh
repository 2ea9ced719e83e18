#!/bin/sh
# What only a GPU can show, in about ten minutes and without a network: see gpu.py.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python}" "$here/gpu.py" "$@"
