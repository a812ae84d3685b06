#ifndef SUM_H
#define SUM_H

#include <stddef.h>

#include "staticcall.h"

/* The sum of `count` numbers: one variant for every x86-64 machine, one for those with AVX2. */
long sum_plain(const int *numbers, size_t count);
long sum_avx2(const int *numbers, size_t count);

DECLARE_STATIC_CALL(sum, sum_plain);

#endif
