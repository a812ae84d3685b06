#include "hash.h"

DEFINE_STATIC_CALL(hash, hash_sum);

uint32_t hash_sum(const unsigned char *bytes, size_t count)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += bytes[i];
    return sum;
}

uint32_t hash_turn(const unsigned char *bytes, size_t count)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum = (sum << 5 | sum >> 27) ^ bytes[i];
    return sum;
}
