"""A memory beside a frozen language model's prompt.

`frozen.py` loads the model, `sentences.py` cuts text, `address.py` turns text into an address and says what kind of
text it is, `content.py` keeps what was said in fast weights, `memory.py` joins the two and is what a memory file holds.
`learning.py` decides what is written, and `correcting.py` what that replaces. `evidence.py` judges what was recalled,
`answer.py` and `speaking.py` let the model speak. `engine.py` is all of them in use, `records.py` what it hands out.
"""
