"""``python -m monai_lcs``: the same as the command ``monai-lcs``."""

import sys

from monai_lcs.cli import main

sys.exit(main())
