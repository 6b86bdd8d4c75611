"""The usual rule over whole chunks in one autograd node: `node.py`, with a chunk's `forward.py` and `backward.py`."""
