"""`python -m regforge`: the same as the `regforge` command."""

from regforge.cli import main

main()
