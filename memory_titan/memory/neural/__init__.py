"""The deep neural memory: `naive.py` is its meaning, `chunk.py` the same thing fast, `layer.py` the module."""
