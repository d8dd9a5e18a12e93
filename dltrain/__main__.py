"""`python -m dltrain`: the same as the command `dltrain`."""

import sys

from dltrain.cli import main

sys.exit(main())
