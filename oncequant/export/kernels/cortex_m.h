#ifdef NETWORK_CORTEX_M
/* Dot products with the DSP instructions of Cortex-M4, M7, M33 and M55: two channels by two output pixels at once.
 * Columns are 16 bits wide, in the order 0 2 1 3 of each four inputs, in which masks unpack codes. */

enum { COLUMNS = 2 };
typedef int16_t network_column;

INLINE void dots(const int bits, const int count, const network_layer *l UNUSED, const network_column *columns,
                 int32_t stride, int32_t inputs, const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    for (int32_t lane = 0; lane < lanes; lane += 2) {
        const int32_t next = lane + 1 < lanes ? 1 : 0; /* a last odd channel is computed twice */
        network_words one = first_words(bits, words + lane, lanes, (inputs + 3) / 4);
        const network_column *x = columns, *const end = columns + stride;
        int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0; /* channels a and b, output pixels 0 and 1 */
        while (x < end) {
            const network_words other = {one.of8 + next, one.of4 + next, one.of2 + next, one.of1 + next};
            UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
                UNROLL for (int odd = 0; odd < 2; odd++) {
                    const uint32_t a = codes_of_word(bits, one, lanes, s, 8 * odd, 0x00010001u);
                    const uint32_t b = codes_of_word(bits, other, lanes, s, 8 * odd, 0x00010001u);
                    const uint32_t x0 = load_word(x + 4 * s + 2 * odd);
                    a0 = __smlad((int16x2_t)x0, (int16x2_t)a, a0);
                    b0 = __smlad((int16x2_t)x0, (int16x2_t)b, b0);
                    if (count > 1) {
                        const uint32_t x1 = load_word(x + stride + 4 * s + 2 * odd);
                        a1 = __smlad((int16x2_t)x1, (int16x2_t)a, a1);
                        b1 = __smlad((int16x2_t)x1, (int16x2_t)b, b1);
                    }
                }
            }
            x += 4 * chunk_steps(bits);
            one = next_words(bits, one, lanes);
        }
        sums[0][lane] = a0;
        sums[0][lane + next] = b0;
        if (count > 1) {
            sums[1][lane] = a1;
            sums[1][lane + next] = b1;
        }
    }
}
#endif
