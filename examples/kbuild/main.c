// SPDX-License-Identifier: GPL-2.0-only
#include <linux/module.h>

#include "example.h"

DEFINE_STATIC_CALL(example_scale, scale_twice);

static int __init example_init(void)
{
	pr_info("static_call_example: %lu at first\n", work(14));
	static_call_update(example_scale, scale_thrice);
	pr_info("static_call_example: %lu updated\n", work(14));
	return 0;
}

static void __exit example_exit(void)
{
	pr_info("static_call_example: %lu at last\n", static_call(example_scale)(14));
}

module_init(example_init);
module_exit(example_exit);

MODULE_DESCRIPTION("A module whose table of static calls staticcall makes");
MODULE_LICENSE("GPL");
