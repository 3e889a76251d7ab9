"""`python -m atmc_tool` is `atmc-tool`."""

from atmc_tool.cli import main

main()
