// SPDX-License-Identifier: GPL-2.0-only
#include "example.h"

unsigned long scale_twice(unsigned long number)
{
	return 2 * number;
}

unsigned long scale_thrice(unsigned long number)
{
	return 3 * number;
}

unsigned long work(unsigned long number)
{
	return static_call(example_scale)(number) + 1;
}
