/* Dot products in plain C: for targets without a backend of their own, and for channels that fill no vector. */

UNUSED INLINE void plain_dots(const int bits, const int count, const uint8_t *columns, int32_t stride, int32_t inputs,
                       const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    const int32_t steps = (inputs + 3) / 4;
    for (int32_t lane = 0; lane < lanes; lane++) {
        network_words part = first_words(bits, words + lane, lanes, steps);
        int32_t sum[4] = {0, 0, 0, 0};
        for (int32_t at = 0; at < stride; at += 4 * chunk_steps(bits)) {
            UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
                const uint32_t code = codes_of_word(bits, part, lanes, s, 0, 0x01010101u);
                UNROLL for (int p = 0; p < count; p++) {
                    const uint8_t *x = columns + p * stride + at + 4 * s;
                    sum[p] += (int32_t)(x[0] * (code & 255) + x[1] * (code >> 8 & 255) + x[2] * (code >> 16 & 255)
                                        + x[3] * (code >> 24));
                }
            }
            part = next_words(bits, part, lanes);
        }
        for (int p = 0; p < count; p++) sums[p][lane] = sum[p];
    }
}

/* The same in one function for all bit-widths, for the last few channels of a layer: less to compile. */
KERNEL void leftover_dots(int bits, int count, const uint8_t *columns, int32_t stride, int32_t inputs,
                                 const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    plain_dots(bits, count, columns, stride, inputs, words, lanes, sums);
}

#if !defined(NETWORK_NEON) && !defined(NETWORK_CORTEX_M)
enum { COLUMNS = 4 };
typedef uint8_t network_column;

INLINE void dots(const int bits, const int count, const network_layer *l UNUSED, const network_column *columns,
                 int32_t stride, int32_t inputs, const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    plain_dots(bits, count, columns, stride, inputs, words, lanes, sums);
}
#endif
