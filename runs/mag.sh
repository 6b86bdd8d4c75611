#!/bin/sh
# MemoryMAG from end to end, in small: the four blocks of its first README in order, on SmolLM2-135M and a CPU. Patch, data,
# three phases of training, evaluation, diagnosis. About a quarter of an hour on two cores. Usage: runs/mag.sh [FOLDER]
#
# It shows that everything works together; what a graft can learn, with more steps, is in runs/graft.sh.
set -eu
folder=${1:-reports/mag}
run=${MEMORY_TITAN:-memory-titan}
python=${PYTHON:-python3}
data=$folder/data checkpoints=$folder/checkpoints

echo "1. patch a model"
"$python" - <<'EOF'
import torch
from memory_titan import MAGConfig, get_memory_model
from memory_titan.hybrid.frozen import load_frozen

model = get_memory_model(load_frozen("smollm2").model, MAGConfig(memory_layers=2, n_persistent_tokens=16, chunk_size=64))
print(f"Trainable: {model.count_trainable_parameters():,} parameters")
EOF

echo "2. generate training data"
common="--tokenizer smollm2 --force"
$run data hash-hop --context_len 256 --needles 4 --questions 4 --hash_len 4 --num_samples 480 --output "$data/hash_hop.jsonl" $common
$run data dependency --context_len 256 --form chain --hops 2 --chains 4 --questions 4 --num_samples 160 --output "$data/dependency_2hop.jsonl" $common
$run data code-retrieval --synthetic --context_len 800 --questions 2 --num_samples 60 --output "$data/code_retrieval.jsonl" $common

echo "3. train, each phase from the one before"
train="$run train mag --dtype bfloat16 --evaluate_every 30 --num_epochs 1 --gate_price 0.5 --write_price 0.5 --limit 1000"
[ -d "$checkpoints/phase1/best" ] || $train --data_path "$data/hash_hop.jsonl" --output_dir "$checkpoints/phase1" --learning_rate 2e-3 \
    --calibrate 40 --layers 26 --window 64 --sinks 4 --source tokens --ngram 7 --memory_layers 1 --memory_dim 1152 --memory_heads 2 \
    --n_persistent_tokens 0 --chunk_size 32 --gate_bias=-1 --memory '{"algorithm": "descent", "retention": "none", "gates": "hard"}'
[ -d "$checkpoints/phase2/best" ] || $train --data_path "$data/dependency_2hop.jsonl" --output_dir "$checkpoints/phase2" --learning_rate 1e-3 \
    --resume_from "$checkpoints/phase1/best"
[ -d "$checkpoints/phase3/best" ] || $train --data_path "$data/code_retrieval.jsonl" --output_dir "$checkpoints/phase3" --learning_rate 5e-4 \
    --resume_from "$checkpoints/phase2/best"

echo "4. evaluate"
$run evaluate needle --checkpoint "$checkpoints/phase1" --task hash-hop --needles 4 --questions 4 --hash_len 4 \
    --context_lengths 256,1024 --depths 0,0.5,1 --samples 2 --dtype bfloat16 --output "$folder/needle"
$run evaluate code --checkpoint "$checkpoints/phase3" --synthetic --context_lengths 800 --samples 4 --dtype bfloat16

echo "5. watch"
$run diagnose --checkpoint "$checkpoints/phase1" --dtype bfloat16 --samples 4 --output "$folder/diagnosis"
