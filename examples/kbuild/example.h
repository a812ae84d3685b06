/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <linux/static_call.h>

unsigned long scale_twice(unsigned long number);
unsigned long scale_thrice(unsigned long number);

DECLARE_STATIC_CALL(example_scale, scale_twice);

unsigned long work(unsigned long number);

#endif
