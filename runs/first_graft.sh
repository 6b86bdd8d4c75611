#!/bin/sh
# A first graft on SmolLM2-135M: six pairs of hashes among prose, asked for beyond a window of 16 tokens.
# A quarter of an hour on two cores. Usage: runs/first_graft.sh [FOLDER]
set -eu
folder=${1:-reports/hash_hop}
run=${MEMORY_TITAN:-memory-titan}
pairs="--needles 6 --questions 6 --hash_len 4 --tokenizer smollm2 --force"

$run data hash-hop $pairs --context_len 190 --num_samples 3000 --output "$folder/train.jsonl"
$run data hash-hop $pairs --context_len 190 --num_samples 24 --seed 7 --output "$folder/test_190.jsonl"
for length in 400 1600 3200; do
    $run data hash-hop $pairs --context_len $length --depth 0.1 --num_samples 12 --seed 7 \
        --output "$folder/test_$length.jsonl"
done

$run train mag --data_path "$folder/train.jsonl" --eval_path "$folder/test_190.jsonl" --output_dir "$folder/run" \
    --dtype bfloat16 --calibrate 40 --layers 26 --window 16 --source tokens --ngram 7 \
    --memory_layers 1 --memory_dim 1152 --memory_heads 2 --chunk_size 32 --gate sigmoid --gate_bias=-1 \
    --memory '{"algorithm": "descent", "retention": "none"}' \
    --learning_rate 2e-3 --num_epochs 1 --max_steps 700 --evaluate_every 50

$run evaluate answers "$folder"/test_*.jsonl --adapter "$folder/run/best" --dtype bfloat16 --prose 3072
