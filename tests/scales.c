/* Whether whole numbers scale as float does: of test_whole_numbers_scale_as_float_does. */
#include "network.c"
#include <stdio.h>

static uint32_t state = 1;
static uint32_t drawn(void) { return (state = state * 1664525u + 1013904223u) >> 8; }
static float ratio_of(int round) /* now and then so round that ties are common */
{
    const uint32_t bits = (uint32_t)(103 + drawn() % 25) << 23 | (round % 2 ? drawn() >> 1 : drawn() % 4 << 21);
    float ratio;
    memcpy(&ratio, &bits, 4);
    return round % 3 ? ratio : -ratio;
}

int main(void)
{
    long clear = 0, all = 0, wrong = 0;
    for (int round = 0; round < 60; round++) {
        const float ratio = ratio_of(round);
        const int32_t zero = (int32_t)(drawn() % 256), max = (2 << drawn() % 8) - 1, far = 1 << (8 + drawn() % 20);
        for (int32_t i = -100000; i < 100000; i++, all++) {
            const int32_t value = round % 5 ? i : far + i;
            int32_t steps;
            clear += product_steps(value, ratio, &steps);
            wrong += scaled(value, ratio, zero, max) != code_of((float)value * ratio, zero, max);
        }
    }
    static uint8_t a[65536], b[65536], sums[65536];
    for (int i = 0; i < 65536; i++) a[i] = (uint8_t)i, b[i] = (uint8_t)(i >> 8);
    for (int round = 0; round < 60; round++) {
        float of_a = ratio_of(round), of_b = ratio_of(round + 1), offset = (float)(drawn() % 1024) - 512.0f;
        of_a = of_a < 0 ? -of_a : of_a;
        of_b = of_b < 0 ? -of_b : of_b;
        if (round % 2) offset *= 0.3f;
        add(a, b, sums, 65536, of_a, of_b, offset, 255);
        for (int i = 0; i < 65536; i++)
            wrong += sums[i] != code_of(fused(of_a, a[i], fused(of_b, b[i], offset)), 0, 255);
    }
    for (int round = 0; round < 200; round++) {
        const float ratio = ratio_of(round);
        const int32_t zero = (int32_t)(drawn() % 256), zero_a = (int32_t)(drawn() % 256);
        const int32_t gate_zero = (int32_t)(drawn() % 256);
        multiply(a, b + round % 256 * 256, sums, 256, 1, zero_a, gate_zero, ratio, zero, 255);
        for (int i = 0; i < 256; i++) {
            const float product = (float)((a[i] - zero_a) * (b[round % 256 * 256] - gate_zero)) * ratio;
            wrong += sums[i] != code_of(product + (float)zero, 0, 255);
        }
    }
    printf("%ld wrong, %.4f clear\n", wrong, (double)clear / (double)all);
    return 0;
}
