#!/usr/bin/env bash
# Remakes the demo model from nothing: run.sh WORK_FOLDER [OUTPUT_FOLDER]
# About four hours on four cores; the minutes below are wall-clock limits, so a slower machine trains less.
set -euo pipefail
work=$1
out=${2:-$work/demo}
cd "$(dirname "$0")"
mkdir -p "$work" "$out" log
python=${PYTHON:-python3}

$python tokenizer.py --out "$out/tokenizer"
$python text_encoder.py --tokenizer "$out/tokenizer" --out "$work/text_encoder" --minutes 8 --threads 2 \
    --log log/text_encoder.csv

$python vae.py --out "$work/vae-1" --minutes 17 --log log/vae-1.csv
$python vae.py --resume "$work/vae-1" --out "$work/vae-2" --minutes 10 --log log/vae-2.csv

$python dataset.py captions --shards "$work/shards" --which 0 1 2 3 --count 15000 \
    --tokenizer "$out/tokenizer" --text-encoder "$work/text_encoder"
$python dataset.py pictures --shards "$work/shards" --which 0 1 2 3 --vae "$work/vae-2" --threads 2

# The decoder is polished first; the latents no longer change.
$python vae.py --resume "$work/vae-2" --out "$work/vae-3" --decoder-only --lr 1.2e-3 --minutes 8 \
    --log log/vae-3.csv
$python transformer.py --shards "$work/shards" --text-encoder "$work/text_encoder" --out "$work/transformer" \
    --minutes 150 --compile --log log/transformer.csv

$python assemble.py --text-encoder "$work/text_encoder" --vae "$work/vae-3" --transformer "$work/transformer" --out "$out"
$python check.py --model "$out" --out "$work/check"
