#include "sum.h"

#include <immintrin.h>

DEFINE_STATIC_CALL(sum, sum_plain);

long sum_plain(const int *numbers, size_t count)
{
    long sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += numbers[i];
    return sum;
}

__attribute__((target("avx2"))) long sum_avx2(const int *numbers, size_t count)
{
    __m256i lanes = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 4 <= count; i += 4)
        lanes = _mm256_add_epi64(lanes, _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)(numbers + i))));
    long part[4];
    _mm256_storeu_si256((__m256i *)part, lanes);
    return part[0] + part[1] + part[2] + part[3] + sum_plain(numbers + i, count - i);
}
