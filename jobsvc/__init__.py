"""jobsvc: a job service for one Linux machine, made of systemd, the journal, D-Bus and polkit."""

__version__ = "0.1.0"
