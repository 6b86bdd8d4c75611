"""Training what stands on a memory: examples, objectives, the loop, checkpoints."""
