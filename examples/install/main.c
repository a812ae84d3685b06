#include <stdio.h>

#include "sum.h"

int main(void)
{
    int numbers[1003];
    for (int i = 0; i < 1003; i++)
        numbers[i] = i * 1001 - 7;
    printf("%s %ld\n", static_call_query(sum) == sum_avx2 ? "avx2" : "plain", static_call(sum)(numbers, 1003));
    return 0;
}
