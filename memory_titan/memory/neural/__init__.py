"""The neural memory: `naive.py` is its meaning, `chunk.py` the same thing fast, `layer.py` the module.

Its four choices are one file each: `structure.py`, `bias.py`, `retention.py`, and for the algorithm `rule.py`,
`orthogonal.py`, `mesa.py`. `presets.py` has the memories of the papers. `fused/` and `step.py` are the usual rule once
more, for whole chunks and for single tokens; `tnt.py` puts several memories side by side.
"""
