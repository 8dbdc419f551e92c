"""Makes what the tests of the plugin share importable here too, wherever these are run from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nerf"))
