#ifdef NETWORK_CORTEX_M
/* Dot products with the DSP instructions of Cortex-M4, M7, M33 and M55: two channels by two output pixels at once.
 * Columns are 16 bits wide, in the order 0 2 1 3 of each four inputs, in which masks unpack codes; those of the two
 * pixels alternate, step by step, so that one register points at both. */

enum { COLUMNS = 2 };
typedef int16_t network_column;

/* Channels `words` and, with `two`, the next one. */
INLINE void pair_dots(const int bits, const int count, const int two, const network_column *x, int32_t stride,
                      int32_t inputs, const uint32_t *words, int32_t lanes, int32_t *sums0, int32_t *sums1)
{
    const network_column *const end = x + COLUMNS * stride;
    network_words part = first_words(bits, words, lanes, (inputs + 3) / 4);
    int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0; /* channels a and b, output pixels 0 and 1 */
    uint32_t unit = 0x00010001u;
    __asm__("" : "+r"(unit)); /* masks in registers: then a shift and a mask are one instruction */
    while (x < end) {
        const network_words next = {part.of8 + 1, part.of4 + 1, part.of2 + 1, part.of1 + 1};
        UNROLL for (int s = 0; s < chunk_steps(bits); s++, x += 4 * COLUMNS) {
            UNROLL for (int odd = 0; odd < 2; odd++) {
                const int16x2_t x0 = (int16x2_t)load_word(x + 2 * odd), x1 = (int16x2_t)load_word(x + 4 + 2 * odd);
                const int16x2_t a = (int16x2_t)codes_of_word(bits, part, lanes, s, 8 * odd, unit);
                a0 = __smlad(x0, a, a0);
                if (count > 1) a1 = __smlad(x1, a, a1);
                if (two) {
                    const int16x2_t b = (int16x2_t)codes_of_word(bits, next, lanes, s, 8 * odd, unit);
                    b0 = __smlad(x0, b, b0);
                    if (count > 1) b1 = __smlad(x1, b, b1);
                }
            }
        }
        part = next_words(bits, part, lanes);
    }
    sums0[0] = a0;
    if (two) sums0[1] = b0;
    if (count > 1) sums1[0] = a1;
    if (two && count > 1) sums1[1] = b1;
}

INLINE void dots(const int bits, const int count, const network_layer *l UNUSED, const network_column *columns,
                 int32_t stride, int32_t inputs, const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    int32_t lane = 0;
    for (; lane + 1 < lanes; lane += 2)
        pair_dots(bits, count, 1, columns, stride, inputs, words + lane, lanes, sums[0] + lane, sums[1] + lane);
    if (lane < lanes)
        pair_dots(bits, count, 0, columns, stride, inputs, words + lane, lanes, sums[0] + lane, sums[1] + lane);
}
#endif
