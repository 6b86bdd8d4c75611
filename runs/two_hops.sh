#!/bin/sh
# Two hops in one answer: "Module river depends on stone. Module stone depends on lamp. ... Through one other, module river depends on"
# lamp. Two memories, at layers 22 and 26, with the query refined from one to the next and without. Ten minutes each on two cores.
# Usage: runs/two_hops.sh [FOLDER [SEED]]
set -eu
folder=${1:-reports/two_hops} seed=${2:-0}
run=${MEMORY_TITAN:-memory-titan}
chains="--form chain --hops 2 --chains 6 --questions 6 --context_len 256 --tokenizer smollm2"

[ -f "$folder/train.jsonl" ] || $run data dependency $chains --num_samples 800 --output "$folder/train.jsonl"
[ -f "$folder/dev.jsonl" ] || $run data dependency $chains --num_samples 24 --seed 7 --output "$folder/dev.jsonl"

for refinement in query_refinement no_query_refinement; do
    $run train mag --data_path "$folder/train.jsonl" --eval_path "$folder/dev.jsonl" --output_dir "$folder/$refinement$seed" --seed "$seed" \
        --dtype bfloat16 --calibrate 40 --layers 22,26 --window 32 --sinks 4 --source tokens --ngram 3 --memory_layers 1 --memory_dim 576 \
        --memory_heads 1 --n_persistent_tokens 0 --chunk_size 32 --gate_bias=-1 --$refinement \
        --memory '{"algorithm": "descent", "retention": "none", "gates": "hard"}' --learning_rate 1e-3 --num_epochs 4 --max_steps 100 \
        --evaluate_every 50 --gate_price 0.3 --write_price 0.3 --cache_lower "$folder/lower"
    $run evaluate needle --checkpoint "$folder/$refinement$seed" --dtype bfloat16 --task dependency --form chain --hops 2 --chains 6 \
        --questions 6 --context_lengths 256,1024,4096 --depths 0,0.5 --samples 3 --bare --seed 100 --output "$folder/$refinement$seed/needle"
done
