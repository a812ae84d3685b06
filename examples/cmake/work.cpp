#include "work.hpp"

#include <cstring>

#include "hash.h"

std::uint32_t work(const char *text)
{
    auto bytes = reinterpret_cast<const unsigned char *>(text);
    std::size_t half = std::strlen(text) / 2;
    return 3 * static_call(hash)(bytes, half) + static_call(hash)(bytes + half, std::strlen(text) - half);
}
