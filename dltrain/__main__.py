"""`python -m dltrain`: the command dltrain."""

import sys

from dltrain.cli import main

sys.exit(main())
