"""The store's embedder for tests is for these tests too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "store"))
