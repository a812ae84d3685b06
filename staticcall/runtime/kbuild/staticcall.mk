# Static calls of modules that are built outside of the kernel's tree:
#
#     STATICCALL ?= staticcall
#     KDIR ?= /lib/modules/$(shell uname -r)/build
#     include $(shell $(STATICCALL) --include-dir)/../kbuild/staticcall.mk
#
#     modules:
#     	$(MAKE) -C $(KDIR) M=$(CURDIR) $(STATICCALL_KBUILD) modules
#
# The kernel's objtool does its other work still; its table of static calls is made by staticcall. For a kernel whose
# headers come without an objtool set STATICCALL_OBJTOOL to nothing. License: Apache-2.0

STATICCALL ?= staticcall
STATICCALL_KBUILD_DIR := $(shell $(STATICCALL) --include-dir)/../kbuild
STATICCALL_OBJTOOL ?= $(abspath $(KDIR))/tools/objtool/objtool
STATICCALL_KBUILD = objtool=$(STATICCALL_KBUILD_DIR)/staticcall-objtool
export STATICCALL STATICCALL_OBJTOOL

# The gate: fails with 1 where a module has calls without a table, or one that a kernel would stumble over.
STATICCALL_MODULE_GATE = $(STATICCALL) report --fail-on note
