# `make demo` and `make test` set everything up on first use; running them again does no set-up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint setup flash flash-sanitize flash-doors flash-arm runner-arm android ios clean help

help:
	@echo "make demo       distil, export, verify and profile the embedded default (8 to 17 minutes with set-up)"
	@echo "make test       the test suite (about 20 minutes with set-up, on two cores)"
	@echo "make test-slow  full-size exports, the flash engine's doors and other checks that take minutes each"
	@echo "make lint       ruff and mypy"
	@echo "make flash      rebuild the flash engine after a change of its sources"
	@echo "make flash-sanitize   its native tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer"
	@echo "make flash-doors      its op for ExecuTorch and ONNX Runtime"
	@echo "make flash-arm  its native tests on emulated ARM64"
	@echo "make runner-arm the program that profiles Android phones, for emulated ARM64"
	@echo "make android    compile, test and pack the Android library and app, as far as this machine can"
	@echo "make ios        build and test the Swift package; on Linux with a Swift of its own, as root"
	@echo "make clean      remove the environment and everything that was built"

setup: $(STAMP)

# The stamp is written last, so an interrupted install is taken up again.
# torch comes first: where a CPU build is served it is taken, elsewhere the registry's default build.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "Python 3.11 not found: install it, or set PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(VENV), once; this takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) "torch==2.13.0+cpu" 2>/dev/null || $(PIP) torch
	@$(PIP) -e ".[all,dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/handheld demo --out demo

# A process a core; without the setting, idle threads of each would spin on the cores of the others.
test: $(STAMP)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile

test-slow: flash-doors
	$(BIN)/python -m pytest tests/runtime/flash/test_doors.py
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy -p handheld

FLASH := cmake -S runtime/flash -DHANDHELD_FLASH_TESTS=ON

# An installation goes on without an engine that does not compile, and keeps what the compiler said to itself.
flash: $(STAMP)
	@$(PIP) --no-deps -e .
	@$(BIN)/python -c "from handheld.runtime.flash.engine import load_native; load_native()" 2> /dev/null || \
	  { echo "The engine was not built. This says why:"; $(FLASH) -B build/flash-failed && \
	    cmake --build build/flash-failed; exit 1; }

flash-sanitize:
	$(FLASH) -B build/flash-address -DHANDHELD_FLASH_SANITIZE=address,undefined
	cmake --build build/flash-address --parallel 2
	ctest --test-dir build/flash-address --output-on-failure
	$(FLASH) -B build/flash-thread -DHANDHELD_FLASH_SANITIZE=thread
	cmake --build build/flash-thread --parallel 2
	ctest --test-dir build/flash-thread --output-on-failure

android: $(STAMP)
	$(BIN)/python android_demo/check

ios:
	ios_demo/check/run

# ExecuTorch's package brings its headers; ONNX Runtime's does not, so that they are fetched unless ORT_HEADERS names the
# folder of onnxruntime_cxx_api.h. The first needs a newer CMake than most systems have.
ORT_HEADERS ?=

flash-doors: $(STAMP)
	@$(PIP) "cmake>=3.28"
	@headers="$(abspath $(ORT_HEADERS))"; \
	test -n "$$headers" || headers=$$($(BIN)/python android_demo/check/tools.py build/android/tools) || \
	  echo "No headers of ONNX Runtime (set ORT_HEADERS): building ExecuTorch's kernel only"; \
	$(BIN)/cmake -S runtime/flash -B build/flash-doors -DHANDHELD_FLASH_ORT="$$headers" \
	  -DHANDHELD_FLASH_EXECUTORCH="$$($(BIN)/python -c 'import executorch; print(list(executorch.__path__)[0])')"
	$(BIN)/cmake --build build/flash-doors --parallel 2

ARM := aarch64-linux-gnu

flash-arm:
	@command -v $(ARM)-g++ && command -v qemu-aarch64-static || \
	  { echo "Install a cross compiler and an emulator: apt-get install g++-$(ARM) qemu-user-static"; exit 1; }
	$(FLASH) -B build/flash-arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(ARM)-g++ -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64-static;-L;/usr/$(ARM)"
	cmake --build build/flash-arm --parallel 2
	ctest --test-dir build/flash-arm --output-on-failure

# The wheel for ARM64 Linux stands in for an ExecuTorch built for Android. `run` is the runner in the emulator: numerics
# and the way over adb, at a hundredth of the speed or less.
RUNNER_ARM := build/runner-arm
ET_VERSION := $(shell sed -n 's/^executorch==//p' constraints.txt)

runner-arm: $(STAMP)
	@command -v $(ARM)-g++ && command -v qemu-aarch64-static || \
	  { echo "Install a cross compiler and an emulator: apt-get install g++-$(ARM) qemu-user-static"; exit 1; }
	@$(PIP) "cmake>=3.28"
	$(BIN)/pip download -qq --disable-pip-version-check --no-deps --dest $(RUNNER_ARM) executorch==$(ET_VERSION) \
	  --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_aarch64
	$(BIN)/python -m zipfile -e $(RUNNER_ARM)/executorch-$(ET_VERSION)-*_aarch64.whl $(RUNNER_ARM)/wheel
	$(BIN)/cmake -S runtime/runner -B $(RUNNER_ARM)/cmake -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(ARM)-g++ -DCMAKE_PREFIX_PATH=$(abspath $(RUNNER_ARM))/wheel/executorch
	$(BIN)/cmake --build $(RUNNER_ARM)/cmake
	@printf '#!/bin/sh\nexec qemu-aarch64-static -L /usr/$(ARM) "%s" "$$@"\n' \
	  "$(abspath $(RUNNER_ARM))/cmake/handheld_runner" > $(RUNNER_ARM)/run
	@chmod +x $(RUNNER_ARM)/run

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
