"""Things that an ordinary user can make and hand to others, whose every use may hang, fail or lie.

Standard library only: it runs in the machine under test, put there by `system/foreign.py`, and in the fuzzer.
"""
