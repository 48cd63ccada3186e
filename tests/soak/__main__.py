"""`python -m tests.soak`: see README.md."""

import sys

# Servers that are forked import this file again: it must load nothing.
if __name__ == "__main__":
    from tests.soak.driver import main

    sys.exit(main(sys.argv[1:]))
