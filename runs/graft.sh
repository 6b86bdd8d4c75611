#!/bin/sh
# The graft whose figures stand in docs/graft.md: eight pairs of hashes among prose, asked for beyond a window of 64 tokens, with a price
# on open gates and on writing. Half an hour a seed on two cores. Usage: runs/graft.sh [FOLDER [SEED]]
set -eu
folder=${1:-reports/graft} seed=${2:-0}
run=${MEMORY_TITAN:-memory-titan}
pairs="--needles 8 --questions 8 --hash_len 4 --context_len 320 --tokenizer smollm2"

[ -f "$folder/train.jsonl" ] || $run data hash-hop $pairs --num_samples 1000 --output "$folder/train.jsonl"
[ -f "$folder/more.jsonl" ] || $run data hash-hop $pairs --num_samples 1500 --start 1000 --output "$folder/more.jsonl"
[ -f "$folder/dev.jsonl" ] || $run data hash-hop $pairs --num_samples 16 --seed 7 --output "$folder/dev.jsonl"

train="$run train mag --eval_path $folder/dev.jsonl --seed $seed --dtype bfloat16 --num_epochs 2 --evaluate_every 50 --prose topics"
# First the skill, at a price that closes gates wherever they are not needed; then the same with next to no price, on texts that
# were not seen yet: seen three times, a thousand texts are learned by heart.
$train --data_path "$folder/train.jsonl" --output_dir "$folder/seed$seed/shut" --max_steps 450 --learning_rate 2e-3 \
    --gate_price 1 --write_price 1 --cache_lower "$folder/lower" \
    --calibrate 40 --layers 26 --window 64 --sinks 4 --source tokens --ngram 7 --memory_layers 1 --memory_dim 1152 --memory_heads 2 \
    --n_persistent_tokens 0 --chunk_size 32 --gate_bias=-1 --memory '{"algorithm": "descent", "retention": "none", "gates": "hard"}'
$train --data_path "$folder/more.jsonl" --output_dir "$folder/seed$seed/free" --max_steps 400 --learning_rate 1e-3 \
    --gate_price 0.1 --write_price 0.1 --resume_from "$folder/seed$seed/shut/latest"

ask="$run evaluate needle --checkpoint $folder/seed$seed/free --dtype bfloat16 --task hash-hop --hash_len 4 --seed 100"
$ask --needles 8 --questions 8 --context_lengths 320,640,1280,2560,5120 --depths 0 --samples 4 --output "$folder/seed$seed/eight"
$ask --needles 1 --questions 1 --context_lengths 320,1280,5120 --depths 0,0.25,0.5 --samples 8 --output "$folder/seed$seed/one"
$run evaluate answers "$folder/dev.jsonl" --checkpoint "$folder/seed$seed/free" --dtype bfloat16 --limit 4 --prose 4096 --probes
