#ifndef HASH_H
#define HASH_H

#include <stddef.h>
#include <stdint.h>

#include "staticcall.h"

uint32_t hash_sum(const unsigned char *bytes, size_t count);
uint32_t hash_turn(const unsigned char *bytes, size_t count);

/* Calls static_call(hash)(bytes, count) go to hash_sum at first. */
DECLARE_STATIC_CALL(hash, hash_sum);

uint32_t work(const char *text);

#endif
