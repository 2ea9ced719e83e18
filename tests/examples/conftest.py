"""The example's modules import one another by their plain names, as its scripts do."""

import sys
from pathlib import Path

for example in ("tinyworld", "paper"):
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / example))
