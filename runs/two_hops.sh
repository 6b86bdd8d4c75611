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

train="$run train mag --data_path $folder/train.jsonl --eval_path $folder/dev.jsonl --seed $seed --dtype bfloat16 --num_epochs 4
    --learning_rate 1e-3 --evaluate_every 50 --cache_lower $folder/lower"
ask="$run evaluate needle --dtype bfloat16 --task dependency --form chain --hops 2 --chains 6 --questions 6 --context_lengths 256,1024,4096
    --depths 0,0.5 --samples 3 --seed 100"
for refinement in query_refinement no_query_refinement; do
    $train --output_dir "$folder/$refinement$seed" --max_steps 100 --gate_price 0.3 --write_price 0.3 \
        --calibrate 40 --layers 22,26 --window 32 --sinks 4 --source tokens --ngram 3 --memory_layers 1 --memory_dim 576 --memory_heads 1 \
        --n_persistent_tokens 0 --chunk_size 32 --gate_bias=-1 --memory '{"algorithm": "descent", "retention": "none", "gates": "hard"}' \
        --$refinement
    $ask --checkpoint "$folder/$refinement$seed" --bare --output "$folder/$refinement$seed/needle"
done
# And shut wherever nothing has to be kept, for length.
$train --output_dir "$folder/shut$seed" --max_steps 150 --gate_price 1 --write_price 1 --prose topics \
    --resume_from "$folder/query_refinement$seed/latest"
$ask --checkpoint "$folder/shut$seed" --bare --output "$folder/shut$seed/needle"
$run evaluate answers "$folder/dev.jsonl" --checkpoint "$folder/shut$seed" --dtype bfloat16 --limit 8 --prose 4096 --probes
