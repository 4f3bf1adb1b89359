"""``python -m robustjax`` is the same as the ``robustjax`` command."""

import sys

from robustjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
