"""`python -m tfpipe`."""

from tfpipe.cli import main

if __name__ == "__main__":  # worker processes import this module
    main()
