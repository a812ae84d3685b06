#include <string.h>

#include "hash.h"

uint32_t work(const char *text)
{
    const unsigned char *bytes = (const unsigned char *)text;
    size_t half = strlen(text) / 2;
    return 3 * static_call(hash)(bytes, half) + static_call(hash)(bytes + half, strlen(text) - half);
}
