# Static calls in a Makefile:
#
#     STATICCALL ?= staticcall
#     include $(shell $(STATICCALL) --include-dir)/../make/staticcall.mk
#
# Objects are compiled by $(STATICCALL_COMPILE), which stands in front of the compiler and annotates what it made.
# License: Apache-2.0

STATICCALL ?= staticcall
STATICCALL_INCLUDE_DIR := $(shell $(STATICCALL) --include-dir)
ifeq ($(STATICCALL_INCLUDE_DIR),)
$(error $(STATICCALL) does not run: install staticcall, or give STATICCALL=/path/to/staticcall)
endif
STATICCALL_DIR := $(STATICCALL_INCLUDE_DIR)/../make

# What to compile with, and the runtime, one C file, for programs that update their static calls.
STATICCALL_CPPFLAGS := -I$(STATICCALL_INCLUDE_DIR)
STATICCALL_RUNTIME := $(STATICCALL_INCLUDE_DIR)/../staticcall.c

# In front of the compiler and its options, and in front of files that the gate is for.
STATICCALL_COMPILE = STATICCALL='$(STATICCALL)' sh $(STATICCALL_DIR)/staticcall-compile
STATICCALL_GATE = STATICCALL='$(STATICCALL)' sh $(STATICCALL_DIR)/staticcall-gate

# With these every site is a call with opcode e8 in one cache line, which the default policy patches. The assembler of
# clang does not align calls that may go by a PLT, as those of a PIE, so clang hands over to the system's.
STATICCALL_ALIGN = -fno-optimize-sibling-calls \
    -Wa,-malign-branch-boundary=64,-malign-branch=call+jmp,-malign-branch-prefix-size=5 \
    $(if $(findstring clang,$(shell $(CC) --version)),-fno-integrated-as)

# With these every site is a call behind a prefix, for --policy torvalds and the runtime's protocol of that name.
STATICCALL_PREFIXED = -fno-optimize-sibling-calls -fno-plt
STATICCALL_PREFIXED_LDFLAGS = -Wl,-z,call-nop=prefix-0x2e

# What binds: $(STATICCALL_BIND) app -o app.bound
STATICCALL_BIND = $(STATICCALL) patch --quiet --bind
