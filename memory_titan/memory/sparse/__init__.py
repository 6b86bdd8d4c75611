"""The sparse bank: tens of thousands of slots, of which a token touches a few. `naive.py` is its meaning.

`chunk.py` is the same thing fast, on the plan that `plan.py` makes of a chunk's addresses; `product_keys.py` makes the
addresses, `layer.py` is the module, `utilisation.py` tells how many slots are in use and puts a loss on it.
"""
