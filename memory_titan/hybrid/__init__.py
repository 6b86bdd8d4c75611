"""A memory beside a frozen language model's prompt.

`frozen.py` loads the model, `sentences.py` cuts text, `address.py` turns text into an address, `content.py` keeps
what was said in fast weights, `memory.py` joins the two and is what a memory file holds, `evidence.py` judges what was
recalled, `answer.py` lets the model speak from it, and `engine.py` is all of them in use.
"""
