"""`python -m concerto_tf.cli` is the command `concerto`."""

import sys

from concerto_tf.cli import main

if __name__ == "__main__":
    sys.exit(main())
