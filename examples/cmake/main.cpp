#include <cstdio>
#include <cstring>

#include "hash.h"
#include "work.hpp"

int main()
{
    // Where a system forbids rewriting code, this says so, and calls go by their trampolines.
    int error = static_call_init();
    if (error)
        std::fprintf(stderr, "static_call_init: %s\n", std::strerror(-error));

    std::printf("at first %u\n", work("static call"));
    error = static_call_update(hash, hash_turn);
    if (error) {
        std::fprintf(stderr, "static_call_update: %s\n", std::strerror(-error));
        return 1;
    }
    std::printf("updated %u\n", work("static call"));
    return 0;
}
