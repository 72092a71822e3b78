"""Throwaway Debian machines to build, install and try jobsvc in. Root's; standard library only."""
