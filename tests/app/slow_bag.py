"""An embedder that takes its time over texts that say so, and fails over others."""

import threading
import time

from bag import BagEmbedder


class SlowBag(BagEmbedder):
    def __init__(self):
        super().__init__()
        self.began, self.go_on = threading.Event(), threading.Event()

    def embed(self, texts):
        if any("slow" in text for text in texts):
            self.began.set()
            self.go_on.wait(10)
        if any("asleep" in text for text in texts):
            time.sleep(1)
        if any("broken" in text for text in texts):
            raise ValueError("a secret of the embedder")
        return super().embed(texts)
