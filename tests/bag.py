"""An embedder for tests: the sum of a fixed random vector for every word."""

import re
import zlib

import numpy as np

from memory_titan.embedders import BaseEmbedder


class BagEmbedder(BaseEmbedder):
    def __init__(self, dim=64, salt=0):
        self.dim, self.salt, self.calls = dim, salt, 0

    @property
    def name(self):
        return f"bag-{self.dim}-{self.salt}"

    def word(self, word):
        return np.random.default_rng([zlib.crc32(word.encode()), self.salt]).standard_normal(self.dim)

    def embed(self, texts):
        self.calls += 1
        return np.stack([sum(map(self.word, re.findall(r"\w+", text.lower())), np.zeros(self.dim)) for text in texts])
