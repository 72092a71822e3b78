# Everything here needs Debian 12 or 13 and installs what it needs from Debian's packages. All but quick and lint
# needs root.
# The machines and images are kept in JOBSVC_CACHE (/var/cache/jobsvc-build), outside the tree.

SUITE ?= trixie
ARGS ?=

# make had to be there; Python has to come with it, before any of our own can run.
PYTHON = command -v /usr/bin/python3 >/dev/null || \
	{ echo "installing python3 on this machine"; apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install python3 >/dev/null; } && \
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests /usr/bin/python3

.PHONY: help deb try try-clean quick check soak lint types unit package machines system vm fuzz bench clean

help:
	@echo "make deb [SUITE=bookworm]    build the package into dist/"
	@echo "make try [ARGS='run -- ls']  run a job (or any jobctl command) in a throwaway machine"
	@echo "make try-clean               remove that machine"
	@echo "make quick                   lint, types and the pure unit tests, without root, in under a minute"
	@echo "make check                   lint, types, all tests on Debian 12 and 13: each promise once"
	@echo "make lint|types|unit|package|machines [ARGS='-k word']    one part of it"
	@echo "make system|vm [ARGS='-k word']   of machines: those of systemd-nspawn, those of qemu"
	@echo "make soak [MINUTES=60]       kills, damages, power cuts and floods, round after round"
	@echo "make fuzz [SECONDS=300]      hostile calls from an ordinary user, on Debian 12 and 13"
	@echo "make bench [ARGS=...]        measure, beside other tools"

deb:
	@$(PYTHON) -m machine.build $(SUITE)

try:
	@$(PYTHON) -m machine.tryout $(ARGS)

try-clean:
	@$(PYTHON) -m machine.tryout --clean

check:
	@$(PYTHON) -m machine.check

quick lint types unit package machines system vm:
	@$(PYTHON) -m machine.check $@ -- $(ARGS)

soak:
	@MINUTES=$(or $(MINUTES),60) $(PYTHON) -m machine.check $@ -- $(ARGS)

fuzz:
	@export JOBSVC_FUZZ_SECONDS=$(or $(SECONDS),300); $(PYTHON) -m machine.check system -- -k test_fuzz -s $(ARGS)

bench:
	@$(PYTHON) -m machine.bench $(ARGS)

clean:
	rm -rf dist build
