"""`python3 -m jobsvc.cli` is jobctl."""

from jobsvc.cli import main

main()
