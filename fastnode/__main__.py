"""`python -m fastnode` is the command line."""

import sys

from fastnode.cli import main

sys.exit(main())
