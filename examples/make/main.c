#include <stdio.h>
#include <string.h>

#include "hash.h"

int main(void)
{
    /* Where a system forbids rewriting code, this says so, and calls go by their trampolines. */
    int error = static_call_init();
    if (error)
        fprintf(stderr, "static_call_init: %s\n", strerror(-error));

    printf("at first %u\n", work("static call"));
    error = static_call_update(hash, hash_turn);
    if (error) {
        fprintf(stderr, "static_call_update: %s\n", strerror(-error));
        return 1;
    }
    printf("updated %u\n", work("static call"));
    return 0;
}
